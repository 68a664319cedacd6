"""Reads and checks all ledgers of a run folder."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from monitor.audit.chain import Anchor, Broken, Damage, Verdict, canonical, check, genesis
from monitor.audit.ledger import anchors_of, read_anchors
from train.errors import RunError
from train.rundir import RunDir


@dataclass(frozen=True)
class Trail:
    """The audit trail of one run: a verdict for each ledger, by file name."""

    folder: Path
    ledgers: Mapping[str, Verdict]

    @property
    def broken(self) -> list[tuple[str, Broken]]:
        """The first broken line of each ledger that has one."""
        return [(name, one.broken) for name, one in self.ledgers.items() if one.broken]

    @property
    def entries(self) -> list[Mapping[str, Any]]:
        """All entries that hold, in the order of time."""
        found = [
            {**entry, "ledger": name}
            for name, verdict in self.ledgers.items()
            for entry in verdict.entries
        ]
        return sorted(
            found, key=lambda one: (float(one.get("t") or 0), str(one["ledger"]), one["seq"])
        )

    @property
    def head(self) -> str:
        """One hash over the heads of all ledgers, to be kept where nobody writes."""
        heads = {name: [one.head.seq, one.head.hash] for name, one in self.ledgers.items()}
        return hashlib.sha256(canonical(heads)).hexdigest()


def _when(entry: Mapping[str, Any]) -> tuple[float, str, int]:
    return float(entry.get("t") or 0), str(entry["ledger"]), entry["seq"]


def read_trail(run_dir: RunDir) -> Trail:
    """Check every ledger of a run against itself, ``record.json`` and the other ledgers.

    Raises:
        RunError: a ledger cannot be read now.
    """
    data = _read(run_dir)
    anchors: dict[str, list[Anchor]] = {name: [one] for name, one in read_anchors(run_dir).items()}
    for name, content in data.items():
        first = check(name, content).entries[:1]
        for other, anchor in anchors_of(first[0].get("others") if first else None).items():
            anchors.setdefault(other, []).append(anchor)
    names = sorted({*data, *anchors})
    return Trail(
        run_dir.root, {name: _judge(name, data.get(name), anchors.get(name, ())) for name in names}
    )


def _judge(name: str, content: bytes | None, anchors: Sequence[Anchor]) -> Verdict:
    if content is not None:
        return check(name, content, anchors)
    lost = max(anchor.seq for anchor in anchors)
    why = f"the file is gone; it had at least {lost} lines"
    return Verdict((), Anchor(0, genesis(name)), Broken(1, Damage.REMOVED, why), anchored=lost)


def _read(run_dir: RunDir) -> dict[str, bytes]:
    try:
        return {path.name: path.read_bytes() for path in sorted(run_dir.audit.glob("*.jsonl"))}
    except OSError as error:
        raise RunError(
            f"audit: expected ledgers that can be read in {run_dir.audit}, got {error}"
        ) from error
