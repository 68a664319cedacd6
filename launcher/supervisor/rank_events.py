"""Follows the ranks' event files during one attempt and keeps what the supervisor needs of them.

How fast a run goes, learned from the events of its rank 0, and what that allows a phase to take.

Earlier attempts count: a restarted rank knows what this run's steps and saves take. Pure but for
``read_pace``.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from submitrain.config.job import HangConfig
from submitrain.events import Kind, Phase, number, parse_event, read_events
from submitrain.launcher.supervisor.evidence import RankFailure
from submitrain.rollbacks import Rollback
from submitrain.run_folder import RunDir
from submitrain.text import read_end

PATIENCE = 5.0
"""A phase may take so many times what was the slowest so far (a step: the 99th percentile)."""
ENOUGH_STEPS = 3
"""Until so many steps were seen, a step may take as long as the first one."""
LEARNED_FLOOR_S = 300.0
"""Less is never learned for a save or a validation: file systems are shared with others."""
COLLECTIVE_SHARE = 0.9
"""A configured budget ends at this share of a collective's time limit: before peers give up."""
RECENT_STEPS = 1000
READ_BYTES = 8 * 2**20
"""Of a long run only the end of the file is read: some ten thousand steps."""


@dataclass
class Pace:
    """What phases took in this run, in seconds, as rank 0 recorded it."""

    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    slowest_s: dict[str, float] = field(default_factory=dict)
    """By phase; only phases that were left again."""
    _attempt: object = None
    _phase: tuple[str, float] | None = None
    _step: tuple[int, float] | None = None

    def take(self, events: Iterable[dict[str, Any]]) -> Pace:
        """Learn from events of rank 0, in their order."""
        for event in events:
            self._take(event)
        return self

    @property
    def step_s(self) -> float | None:
        """The 99th percentile of the steps; None while too few were seen."""
        if len(self.steps_s) < ENOUGH_STEPS:
            return None
        ordered = sorted(self.steps_s)
        return ordered[math.ceil(0.99 * len(ordered)) - 1]

    def _take(self, event: dict[str, Any]) -> None:
        if event.get("attempt") != self._attempt:
            self._attempt, self._phase, self._step = event.get("attempt"), None, None
        kind, t = event["kind"], number(event.get("t")) or 0.0
        if kind == Kind.PHASE:
            if self._phase is not None:
                self._saw(self._phase[0], t - self._phase[1])
            self._phase, self._step = (str(event.get("phase", "")), t), None
        elif kind == Kind.STEP:
            self._take_step(event, t)
        elif kind == Kind.CHECKPOINT:
            self._saw(Phase.SAVE, number(event.get("save_s")) or 0.0)
        elif kind == Kind.VALIDATION:
            self._saw(Phase.VALIDATE, number(event.get("val_s")) or 0.0)

    def _take_step(self, event: dict[str, Any], t: float) -> None:
        """A step lasts from its predecessor's record to its own: waiting for slow peers counts."""
        step, before = event.get("step"), self._step
        if not isinstance(step, int):
            return
        self._step = (step, t)
        if self._phase is not None and self._phase[0] == Phase.FIRST_STEP:
            return
        took = number(event.get("step_s")) or 0.0
        if before is not None and step > before[0]:
            took = max(took, (t - before[1]) / (step - before[0]))
        if took > 0:
            self.steps_s.append(took)

    def _saw(self, phase: str, seconds: float) -> None:
        self.slowest_s[phase] = max(self.slowest_s.get(phase, 0.0), seconds)


def read_pace(path: Path) -> Pace:
    """The pace of a run so far, from the end of rank 0's event file; a missing file has none."""
    try:
        lines = read_end(path, READ_BYTES).splitlines(keepends=True)
    except OSError:
        return Pace()
    events = (parse_event(line) for line in lines)
    return Pace().take(event for event in events if event is not None)


def budget_s(phase: str, pace: Pace, limits: HangConfig, *, collective_s: float) -> float | None:
    """Seconds that a rank may be in ``phase`` without progress; None = no limit.

    ``collective_s`` is the time limit of a collective, in which the others wait for it.
    """
    limit = limits.limit_s(phase)
    slowest = pace.step_s if phase == Phase.STEP else pace.slowest_s.get(phase)
    if phase == Phase.STEP and slowest is None and limit is not None:
        first = limits.limit_s(Phase.FIRST_STEP)
        limit = None if first is None else max(limit, first)
    if limit is None:
        return None
    if phase != Phase.DATA:  # while data is prepared the others wait outside of collectives
        limit = min(limit, COLLECTIVE_SHARE * collective_s)
    if slowest is None:
        return limit
    if phase in (Phase.SAVE, Phase.VALIDATE):
        limit = min(limit, LEARNED_FLOOR_S)
    return max(limit, PATIENCE * slowest)


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
