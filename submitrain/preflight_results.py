"""What preflights of a run found, and what a rank of a trial reports: read from the run folder."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt
from submitrain.events import Event, mapping, number
from submitrain.run_folder import read_json, write_json_atomically
from submitrain.text import counted

MOST_NAMED = 3
_WHAT = {
    "unknown": "checks that could not be made",
    "warn": "warnings",
    "fail": "failures that all share",
}


@dataclass(frozen=True)
class Remark:
    """Something that a preflight had to say about a node: a warning, a failure, an unknown."""

    node: str
    id: str
    level: str
    evidence: str
    remedy: str


@dataclass(frozen=True)
class PreflightResult:
    """One preflight, as its record tells it; ``began_at`` in UTC seconds."""

    attempt: int
    mode: str
    began_at: float
    took_s: float
    words: str
    unfit: tuple[str, ...]
    remarks: tuple[Remark, ...]

    def as_json(self) -> Event:
        """Plain values."""
        return {
            **vars(self),
            "unfit": list(self.unfit),
            "remarks": [vars(one) for one in self.remarks],
        }


def preflight_text(record: Mapping[str, Any]) -> str:
    """One sentence of a preflight's record, or of its short form in attempts.jsonl."""
    counts = mapping(record.get("nodes"))
    total = sum(count for count in counts.values() if isinstance(count, int))
    nodes = counted(total, "node")
    unfit = mapping(record.get("unfit"))
    took = f"{number(record.get('took_s')) or 0.0:.1f} s"
    if unfit:
        named = "; ".join(f"{node} is unfit ({unfit[node]})" for node in list(unfit)[:MOST_NAMED])
        more = f"; and {len(unfit) - MOST_NAMED} more" if len(unfit) > MOST_NAMED else ""
        return f"{named}{more}; {nodes} in {took}"
    others = [
        f"{count} with {_WHAT.get(level, level)}"
        for level, count in counts.items()
        if level != "ok"
    ]
    if not others:
        return f"all is well on {nodes}, {took}"
    return f"no node of {total} is unfit, {', '.join(others)}, {took}"


def newest_preflight_text(attempts: Iterable[Attempt]) -> str:
    """What the last preflight of a run came to, empty where there was none."""
    found = ""
    for one in attempts:
        record = one.start.get("preflight")
        if isinstance(record, dict):
            found = preflight_text(record)
    return found


def read_preflights(folder: Path) -> list[PreflightResult]:
    """All preflights of a run, in order; a record that cannot be read is left out."""
    rows = []
    for path in sorted((folder / "attempts").glob("*/preflight.json")):
        try:
            value = read_json(path)
        except OSError:
            continue
        if value is not None and path.parent.name.isdigit():
            rows.append(_row(int(path.parent.name), value))
    return rows


def _row(attempt: int, record: Event) -> PreflightResult:
    remarks = [
        Remark(str(node), *(str(one.get(name, "")) for name in ("id", "level", *_TEXTS)))
        for node, found in mapping(record.get("findings")).items()
        for one in (found if isinstance(found, list) else ())
        if isinstance(one, dict) and one.get("level") != "ok"
    ]
    return PreflightResult(
        attempt=attempt,
        mode=str(record.get("mode", "")),
        began_at=number(record.get("began_at")) or 0.0,
        took_s=number(record.get("took_s")) or 0.0,
        words=preflight_text(record),
        unfit=tuple(map(str, mapping(record.get("unfit")))),
        remarks=tuple(sorted(remarks, key=lambda one: (_RANK.get(one.level, 3), one.node))),
    )


_TEXTS = ("evidence", "remedy")
_RANK = {"fail": 0, "warn": 1, "unknown": 2}


@dataclass
class RankReport:
    """What one rank of a preflight's trial saw; seconds unless the name says otherwise."""

    rank: int
    host: str
    stage: str = ""
    """Where it was last; ``done`` is the end, empty before the beginning."""
    meet_s: float | None = None
    join_s: float | None = None
    wrong: list[int] = field(default_factory=list)
    """Sizes of the sums that came out wrong."""
    reduce_bytes: int = 0
    reduce_s: float | None = None
    """The quickest all-reduce of ``reduce_bytes``, by the clock."""
    matmul_s: float | None = None
    """The quickest multiplication: CPU time on a CPU, so that a shared core costs nothing."""
    device: str = ""
    error: str = ""
    victim: bool = False
    """The error is the consequence of another rank's."""

    def write(self, folder: Path) -> None:
        """Write it into the trial's folder."""
        write_json_atomically(folder / f"rank{self.rank:05d}.json", vars(self))

    @classmethod
    def read(cls, folder: Path, rank: int, host: str) -> RankReport:
        """What a rank has written so far; at no stage where that is nothing."""
        try:
            return cls(**json.loads((folder / f"rank{rank:05d}.json").read_text()))
        except (OSError, ValueError, TypeError):
            return cls(rank, host)
