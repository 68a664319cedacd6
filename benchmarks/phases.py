"""Where the time of an attempt's start went, told from what supervisor and ranks recorded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.events import Kind, Phase, read_events
from submitrain.run_folder import RunDir

PARTS = ("spawn", "imports", "rendezvous", "data", "build", "load", "first step")
"""spawn: from the supervisor's record of the attempt to the rank's own first event."""

_BEGINS = {
    Phase.RENDEZVOUS: "rendezvous",
    Phase.DATA: "data",
    Phase.BUILD: "build",
    Phase.LOAD: "load",
    Phase.FIRST_STEP: "first step",
}


@dataclass(frozen=True)
class Start:
    """One attempt from its record by the supervisor to rank 0's first optimizer step."""

    began: float
    """UTC seconds."""
    first_step: float
    """UTC seconds."""
    seconds: dict[str, float]
    """Of each of ``PARTS``, in order; together they are ``total_s``."""

    @property
    def total_s(self) -> float:
        """Seconds until the first optimizer step was done."""
        return self.first_step - self.began


def start_of(folder: Path, attempt: int, *, began: float | None = None) -> Start:
    """Read how ``attempt`` started; ``began`` where no supervisor recorded it.

    Raises:
        ValueError: the attempt recorded no step.
    """
    run_dir = RunDir(folder)
    events = [e for e in read_events(run_dir.events(0)) if e.get("attempt") == attempt]
    marks = {"spawn": _recorded_start(run_dir, attempt) if began is None else began}
    marks["imports"] = _time_of(events, Kind.START)
    for event in events:
        if event["kind"] == Kind.PHASE and (part := _BEGINS.get(Phase(event["phase"]))):
            marks.setdefault(part, event["t"])
    first_step = _time_of(events, Kind.STEP)
    order = [part for part in PARTS if part in marks]
    ends = [*(marks[part] for part in order[1:]), first_step]
    seconds = {part: end - marks[part] for part, end in zip(order, ends, strict=True)}
    return Start(marks["spawn"], first_step, seconds)


def end_of(folder: Path, attempt: int) -> float:
    """When the supervisor had recorded the end of ``attempt`` (UTC seconds)."""
    ends = read_events(RunDir(folder).attempts, kinds=frozenset({Kind.ATTEMPT_END}))
    return float(next(event["t"] for event in ends if event["attempt"] == attempt))


def steps(folder: Path, attempt: int | None = None) -> list[dict[str, Any]]:
    """Step events of rank 0 in the order in which they were written."""
    found = read_events(RunDir(folder).events(0), kinds=frozenset({Kind.STEP}))
    return [event for event in found if attempt in (None, event["attempt"])]


def rank_pid(folder: Path, rank: int) -> int:
    """Process id of a rank in the newest attempt."""
    starts = list(read_events(RunDir(folder).events(rank), kinds=frozenset({Kind.START})))
    return int(starts[-1]["pid"])


def _recorded_start(run_dir: RunDir, attempt: int) -> float:
    starts = read_events(run_dir.attempts, kinds=frozenset({Kind.ATTEMPT_START}))
    return float(next(event["t"] for event in starts if event["attempt"] == attempt))


def _time_of(events: list[dict[str, Any]], kind: Kind) -> float:
    found = [event["t"] for event in events if event["kind"] == kind]
    if not found:
        raise ValueError(f"no {kind} event of rank 0 in this attempt")
    return float(found[0])
