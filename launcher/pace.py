"""How fast a run goes, learned from the events of its rank 0, and what that allows a phase to take.

Earlier attempts count: a restarted rank knows what this run's steps and saves take. Pure but for
``read_pace``.
"""

from __future__ import annotations

import math
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from train.config.hang import HangConfig
from train.events import Kind, Phase, parse_event

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
        kind, t = event["kind"], _seconds(event.get("t")) or 0.0
        if kind == Kind.PHASE:
            if self._phase is not None:
                self._saw(self._phase[0], t - self._phase[1])
            self._phase, self._step = (str(event.get("phase", "")), t), None
        elif kind == Kind.STEP:
            self._take_step(event, t)
        elif kind == Kind.CHECKPOINT:
            self._saw(Phase.SAVE, _seconds(event.get("save_s")) or 0.0)
        elif kind == Kind.VALIDATION:
            self._saw(Phase.VALIDATE, _seconds(event.get("val_s")) or 0.0)

    def _take_step(self, event: dict[str, Any], t: float) -> None:
        """A step lasts from its predecessor's record to its own: waiting for slow peers counts."""
        step, before = event.get("step"), self._step
        if not isinstance(step, int):
            return
        self._step = (step, t)
        if self._phase is not None and self._phase[0] == Phase.FIRST_STEP:
            return
        took = _seconds(event.get("step_s")) or 0.0
        if before is not None and step > before[0]:
            took = max(took, (t - before[1]) / (step - before[0]))
        if took > 0:
            self.steps_s.append(took)

    def _saw(self, phase: str, seconds: float) -> None:
        self.slowest_s[phase] = max(self.slowest_s.get(phase, 0.0), seconds)


def _seconds(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) else None


def read_pace(path: Path) -> Pace:
    """The pace of a run so far, from the end of rank 0's event file; a missing file has none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - READ_BYTES))
            lines = file.readlines()
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
