"""Follows the ranks' event files during one attempt and keeps what the supervisor needs of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from launcher.evidence import RankFailure
from launcher.pace import Pace, read_pace
from train.events import Kind, parse_event, read_events
from train.rollback import Rollback
from train.rundir import RunDir

SHOWN_STEPS = 20
MANY_RANKS = 64
"""Up to so many event files are read at every look; of more, all but rank 0's take turns."""


@dataclass(frozen=True)
class Heartbeat:
    """The last sign of life of a rank."""

    t: float
    step: int
    phase: str
    phase_age_s: float
    progress: tuple[int, int] = (0, 0)
    """Points of the program passed by the main thread, and by the one that saves."""
    idle_s: float = 0.0
    """Seconds without any progress."""


@dataclass
class EventTail:
    """Reads what was appended to one file since the last look; a torn line waits for its end."""

    path: Path
    offset: int
    readable: bool = True
    """Whether the last look could tell what the file holds."""

    @classmethod
    def at_end(cls, path: Path) -> EventTail:
        """A tail that starts where the file ends now."""
        try:
            return cls(path, path.stat().st_size)
        except OSError:
            return cls(path, 0)

    def read(self) -> list[dict[str, Any]]:
        """New whole events; nothing when the file cannot be read now."""
        self.readable = True
        try:
            with self.path.open("rb") as file:
                # Opened anew each time: that is what makes NFS show other hosts' appends.
                file.seek(0, os.SEEK_END)
                if file.tell() <= self.offset:
                    return []
                file.seek(self.offset)
                data = file.read()
        except OSError as error:
            self.readable = isinstance(error, FileNotFoundError)
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        events = (parse_event(line + b"\n") for line in whole.split(b"\n"))
        return [event for event in events if event is not None]


@dataclass
class RankRecords:
    """What all ranks recorded in one attempt so far."""

    run_dir: RunDir
    attempt: int
    world_size: int
    started: dict[int, str] = field(default_factory=dict)
    """Rank to host."""
    finished: set[int] = field(default_factory=set)
    stopped: set[int] = field(default_factory=set)
    signalled: list[int] = field(default_factory=list)
    """Ranks that stopped because a TERM reached themselves."""
    failures: list[RankFailure] = field(default_factory=list)
    heartbeats: dict[int, Heartbeat] = field(default_factory=dict)
    looks: dict[int, int] = field(default_factory=dict)
    """How often each rank's file could be read."""
    pace: Pace = field(default_factory=Pace)
    """What steps, saves and validations of this run take."""
    first_step: int | None = None
    last_step: int | None = None
    steps_s: list[float] = field(default_factory=list)
    slowest_save_s: float | None = None
    rollback: Rollback | None = None
    """What the ranks ask to be undone."""
    warnings: int = 0
    """How often ranks passed on Slurm's warning signal."""
    unsaved: list[int] = field(default_factory=list)
    """Steps whose checkpoint could not be written."""
    dropped: dict[int, int] = field(default_factory=dict)
    """Rank to the number of event lines that it could not write."""

    def __post_init__(self) -> None:
        self._tails = {
            rank: EventTail.at_end(self.run_dir.events(rank)) for rank in range(self.world_size)
        }
        self._turn = 0
        self.pace = read_pace(self.run_dir.events(0))
        saves = read_events(self.run_dir.events(0), kinds=frozenset({Kind.CHECKPOINT}))
        for event in saves:  # of earlier attempts: the lead before the limit needs them at once
            _checkpoint(self, 0, event)

    @property
    def step_s(self) -> float | None:
        """Longest of the last steps, in seconds; None before the first."""
        return max(self.steps_s, default=None)

    def read(self) -> None:
        """Look for new events; rank 0 always, of very many others a part at each look."""
        ranks = list(range(self.world_size))
        if self.world_size > MANY_RANKS:
            others = ranks[1:]
            start = self._turn * MANY_RANKS % len(others)
            self._turn += 1
            ranks = [0, *others[start : start + MANY_RANKS]]
        self._read(ranks)

    def read_all(self) -> None:
        """Look for new events of every rank."""
        self._read(list(range(self.world_size)))

    def _read(self, ranks: list[int]) -> None:
        for rank in ranks:
            events = self._tails[rank].read()
            self.looks[rank] = self.looks.get(rank, 0) + self._tails[rank].readable
            if rank == 0:
                self.pace.take(events)
            for event in events:
                if event.get("attempt") == self.attempt:
                    self._take(rank, event)

    def _take(self, rank: int, event: dict[str, Any]) -> None:
        self._take_step(event)
        if isinstance(event.get("dropped"), int):
            self.dropped[rank] = event["dropped"]
        take = _TAKERS.get(event["kind"])
        if take is not None:
            take(self, rank, event)

    def _take_step(self, event: dict[str, Any]) -> None:
        step = event.get("step")
        if event["kind"] not in _PROGRESS or not isinstance(step, int):
            return
        self.last_step = step if self.last_step is None else max(self.last_step, step)


_PROGRESS = frozenset({Kind.STEP, Kind.HEARTBEAT, Kind.STOPPED, Kind.FINISH, Kind.CHECKPOINT})
"""Events whose ``step`` counts finished optimizer steps."""


def _start(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    records.started[rank] = str(event.get("host", ""))
    _resume(records, rank, {"step": event.get("resumed_step")})


def _resume(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    step = event.get("step")
    if isinstance(step, int):
        records.first_step = step
        records.last_step = max(step, records.last_step or 0)


def _step(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    if records.first_step is None:
        records.first_step = max(0, event["step"] - 1)
    if isinstance(event.get("step_s"), int | float):
        records.steps_s = [*records.steps_s, float(event["step_s"])][-SHOWN_STEPS:]


def _checkpoint(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    seconds = event.get("save_s")
    if isinstance(seconds, int | float):
        records.slowest_save_s = max(records.slowest_save_s or 0.0, float(seconds))


def _unsaved(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    if isinstance(event.get("step"), int):
        records.unsaved.append(event["step"])


def _heartbeat(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    """Where a rank is: by its heartbeats, and by the phases that it entered in between.

    A heartbeat that was put together before the newest phase began may be written after it.
    """
    before, beat = records.heartbeats.get(rank), _beat_of(event)
    if before is not None and beat.progress[0] < before.progress[0]:
        beat = replace(before, t=beat.t)
    records.heartbeats[rank] = beat


def _beat_of(event: dict[str, Any]) -> Heartbeat:
    return Heartbeat(
        t=float(event.get("t", 0.0)),
        step=int(event.get("step") or 0),
        phase=str(event.get("phase", "")),
        phase_age_s=float(event.get("phase_age_s") or 0.0),
        progress=(int(event.get("progress") or 0), int(event.get("save_progress") or 0)),
        idle_s=float(event.get("idle_s") or 0.0),
    )


def _warned(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    records.warnings += 1


def _stopped(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    records.stopped.add(rank)
    if event.get("signalled"):
        records.signalled = sorted({*records.signalled, rank})


def _finish(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    records.finished.add(rank)


def _anomaly(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    if event.get("action") == "rollback":
        records.rollback = Rollback.from_event(event)


def _failure(records: RankRecords, rank: int, event: dict[str, Any]) -> None:
    failure = RankFailure.from_event(event, records.started.get(rank, ""))
    records.failures = sorted([*records.failures, failure], key=lambda one: one.t)


_TAKERS: dict[str, Callable[[RankRecords, int, dict[str, Any]], None]] = {
    Kind.START: _start,
    Kind.RESUME: _resume,
    Kind.STEP: _step,
    Kind.CHECKPOINT: _checkpoint,
    Kind.PHASE: _heartbeat,
    Kind.CHECKPOINT_FAILED: _unsaved,
    Kind.HEARTBEAT: _heartbeat,
    Kind.WARNED: _warned,
    Kind.STOPPED: _stopped,
    Kind.FINISH: _finish,
    Kind.ANOMALY: _anomaly,
    Kind.FAILURE: _failure,
}
