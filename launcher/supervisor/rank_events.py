"""Follows the ranks' event files during one attempt and keeps what the supervisor needs of them.

``StepTimeStats`` learns how fast a run goes from the events of its rank 0, and ``budget_s`` says
what that allows a phase to take. Earlier attempts count: a restarted rank knows what this run's
steps and saves take.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from submitrain.config.job import HangConfig
from submitrain.events import Event, EventTail, Kind, Phase, number, read_events, read_tail
from submitrain.launcher.supervisor.evidence import RankFailure
from submitrain.rollbacks import Rollback
from submitrain.run_folder import RunDir

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
SHOWN_STEPS = 20
MANY_RANKS = 64
"""Up to so many event files are read at every poll; of more, all but rank 0's take turns."""


@dataclass
class StepTimeStats:
    """What phases took in this run, in seconds, as rank 0 recorded it."""

    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT_STEPS))
    slowest_s: dict[str, float] = field(default_factory=dict)
    """By phase; only phases that were left again."""
    _attempt: object = None
    _phase: tuple[str, float] | None = None
    _step: tuple[int, float] | None = None

    @classmethod
    def read(cls, path: Path) -> StepTimeStats:
        """Of a run so far, from the end of rank 0's event file; a missing file has none."""
        try:
            return cls().take(read_tail(path, limit_bytes=READ_BYTES))
        except OSError:
            return cls()

    def take(self, events: Iterable[Event]) -> StepTimeStats:
        """Learn from events of rank 0, in their order."""
        for event in events:
            if event.get("attempt") != self._attempt:
                self._attempt, self._phase, self._step = event.get("attempt"), None, None
            t = number(event.get("t")) or 0.0
            match event["kind"]:
                case Kind.PHASE:
                    if self._phase is not None:
                        self._saw(self._phase[0], t - self._phase[1])
                    self._phase, self._step = (str(event.get("phase", "")), t), None
                case Kind.STEP:
                    self._take_step(event, t)
                case Kind.CHECKPOINT:
                    self._saw(Phase.SAVE, number(event.get("save_s")) or 0.0)
                case Kind.VALIDATION:
                    self._saw(Phase.VALIDATE, number(event.get("val_s")) or 0.0)
        return self

    @property
    def step_s(self) -> float | None:
        """The 99th percentile of the steps; None while too few were seen."""
        if len(self.steps_s) < ENOUGH_STEPS:
            return None
        ordered = sorted(self.steps_s)
        return ordered[math.ceil(0.99 * len(ordered)) - 1]

    def _take_step(self, event: Event, t: float) -> None:
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


def budget_s(
    phase: str, times: StepTimeStats, limits: HangConfig, *, collective_s: float
) -> float | None:
    """Seconds that a rank may be in ``phase`` without progress; None = no limit.

    ``collective_s`` is the time limit of a collective, in which the others wait for it.
    """
    limit = limits.limit_s(phase)
    slowest = times.step_s if phase == Phase.STEP else times.slowest_s.get(phase)
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

    @classmethod
    def from_event(cls, event: Event) -> Heartbeat:
        """Read a ``heartbeat`` or ``phase`` event; missing fields are 0."""
        return cls(
            t=float(event.get("t", 0.0)),
            step=int(event.get("step") or 0),
            phase=str(event.get("phase", "")),
            phase_age_s=float(event.get("phase_age_s") or 0.0),
            progress=(int(event.get("progress") or 0), int(event.get("save_progress") or 0)),
            idle_s=float(event.get("idle_s") or 0.0),
        )


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
    reads: dict[int, int] = field(default_factory=dict)
    """How often each rank's file could be read."""
    first_step: int | None = None
    last_step: int | None = None
    steps_s: deque[float] = field(default_factory=lambda: deque(maxlen=SHOWN_STEPS))
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
        self._tails = [EventTail.at_end(self.run_dir.events(n)) for n in range(self.world_size)]
        self._turn = 0
        self.times = StepTimeStats.read(self.run_dir.events(0))
        saves = read_events(self.run_dir.events(0), kinds=frozenset({Kind.CHECKPOINT}))
        for event in saves:  # of earlier attempts: the lead before the limit needs them at once
            self._take_save(event)

    @property
    def step_s(self) -> float | None:
        """Longest of the last steps, in seconds; None before the first."""
        return max(self.steps_s, default=None)

    @property
    def told(self) -> set[int]:
        """Ranks that recorded their finish, their stop or their failure."""
        return self.finished | self.stopped | {failure.rank for failure in self.failures}

    def read(self, *, everyone: bool = False) -> None:
        """Read new events: of rank 0 always; of very many others a part at a time by default."""
        ranks = list(range(self.world_size))
        if self.world_size > MANY_RANKS and not everyone:
            others = ranks[1:]
            start = self._turn * MANY_RANKS % len(others)
            self._turn += 1
            ranks = [0, *others[start : start + MANY_RANKS]]
        for rank in ranks:
            events = self._tails[rank].read()
            self.reads[rank] = self.reads.get(rank, 0) + self._tails[rank].readable
            if rank == 0:
                self.times.take(events)
            for event in events:
                if event.get("attempt") == self.attempt:
                    self._take(rank, event)

    def _take(self, rank: int, event: Event) -> None:
        kind, step = event["kind"], event.get("step")
        if kind in _PROGRESS and isinstance(step, int):
            self.last_step = step if self.last_step is None else max(self.last_step, step)
        if isinstance(event.get("dropped"), int):
            self.dropped[rank] = event["dropped"]
        match kind:
            case Kind.START:
                self.started[rank] = str(event.get("host", ""))
                self._begin_at(event.get("resumed_step"))
            case Kind.RESUME:
                self._begin_at(step)
            case Kind.STEP:
                if self.first_step is None:
                    self.first_step = max(0, event["step"] - 1)
                if isinstance(event.get("step_s"), int | float):
                    self.steps_s.append(float(event["step_s"]))
            case Kind.CHECKPOINT:
                self._take_save(event)
            case Kind.CHECKPOINT_FAILED if isinstance(step, int):
                self.unsaved.append(step)
            case Kind.PHASE | Kind.HEARTBEAT:
                # One that was put together before the newest phase began may be written after it.
                before, beat = self.heartbeats.get(rank), Heartbeat.from_event(event)
                if before is not None and beat.progress[0] < before.progress[0]:
                    beat = replace(before, t=beat.t)
                self.heartbeats[rank] = beat
            case Kind.WARNED:
                self.warnings += 1
            case Kind.STOPPED:
                self.stopped.add(rank)
                if event.get("signalled"):
                    self.signalled = sorted({*self.signalled, rank})
            case Kind.FINISH:
                self.finished.add(rank)
            case Kind.ANOMALY if event.get("action") == "rollback":
                self.rollback = Rollback.from_event(event)
            case Kind.FAILURE:
                failure = RankFailure.from_event(event, self.started.get(rank, ""))
                self.failures = sorted([*self.failures, failure], key=lambda one: one.t)

    def _begin_at(self, step: object) -> None:
        if isinstance(step, int):
            self.first_step = step
            self.last_step = max(step, self.last_step or 0)

    def _take_save(self, event: Event) -> None:
        seconds = event.get("save_s")
        if isinstance(seconds, int | float):
            self.slowest_save_s = max(self.slowest_save_s or 0.0, float(seconds))


_PROGRESS = frozenset({Kind.STEP, Kind.HEARTBEAT, Kind.STOPPED, Kind.FINISH, Kind.CHECKPOINT})
"""Events whose ``step`` counts finished optimizer steps."""
