"""Automatic saves: rank 0 measures what a save costs and says after which step the next one is due.

Rank 0 alone decides, by its clock; its wish reaches the others in the all-reduce that every step
begins with, so that all save after the same step. Saving never changes what is trained.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from submitrain.config import RunConfig
from submitrain.events import Kind
from submitrain.train.callbacks.history import (
    History,
    Interval,
    SaveCost,
    first_is_due,
    interval_of,
    read_history,
    read_save_cost,
    slowdown_s,
)
from submitrain.train.callbacks.history import typical as typical_of
from submitrain.train.context import RankContext

RECENT_STEPS = 50
RECENT_SAVES = 5
WORTH_TELLING = 1.2
"""An interval is announced when it has changed by this factor."""


class Saver(Protocol):
    """What is asked of the checkpointer."""

    def ready(self) -> bool:
        """Whether no save is in flight."""

    @property
    def newest_cost(self) -> SaveCost | None:
        """What the newest save of this attempt took that has ended."""


@dataclass
class AutoSave:
    """Decides on rank 0 when to save; the loop tells it of every step and every save."""

    context: RankContext
    saver: Saver
    node_mttf_s: float
    nodes: int
    history: History = field(default_factory=History)
    costs: deque[SaveCost] = field(default_factory=lambda: deque(maxlen=RECENT_SAVES))
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self._since = self._mark = self.clock()
        self._steps = 0
        self._first = True
        self._usual: deque[float] = deque(maxlen=RECENT_STEPS)
        self._beside: list[float] = []
        self._in_flight = False
        self._told: float | None = None

    @property
    def step_s(self) -> float:
        """What a step takes; 0.0 while nobody knows."""
        return statistics.median(self._usual) if self._usual else 0.0

    @property
    def mttf_s(self) -> float:
        """Mean time to failure of the run, as of now."""
        more_s = self.clock() - self._began
        return self.history.rate(
            node_mttf_s=self.node_mttf_s, nodes=self.nodes, more_s=more_s
        ).mttf_s

    @property
    def interval(self) -> Interval | None:
        """The interval as of now; None before a save was measured."""
        return interval_of(typical_of(self.costs), self.mttf_s) if self.costs else None

    def wants(self) -> bool:
        """Before a step: whether to save after it."""
        self._look_at_save()
        self._mark = self.clock()
        if self._in_flight:
            return False
        age_s = self._mark - self._since + self.step_s
        interval = self.interval
        if interval is None:
            return first_is_due(self._steps + 1, age_s)
        self._tell(interval)
        return interval.due(age_s, self.step_s)

    def stepped(self, waited_s: float) -> None:
        """After a step, for whose data this rank waited before ``wants``."""
        duration_s = waited_s + self.clock() - self._mark
        self._steps += 1
        if self._in_flight:
            self._beside.append(duration_s)
        elif not self._first:  # which compiles, and fills caches
            self._usual.append(duration_s)
        self._first = False

    def saved(self) -> None:
        """After a save has begun; without ``async_save`` it is over already."""
        self._since = self.clock()
        self._steps = 0
        self._in_flight = True
        self._beside = []

    def _look_at_save(self) -> None:
        """Take note of a save that has ended, one way or another: a failed one costs as much."""
        if not self._in_flight or not self.saver.ready():
            return
        self._in_flight = False
        cost = self.saver.newest_cost
        if cost is not None:
            slowed_s = slowdown_s(self._beside, self._usual, cost.save_s - cost.blocked_s)
            self.costs.append(SaveCost(cost.blocked_s, cost.save_s, slowed_s))

    def _tell(self, interval: Interval) -> None:
        """Write an event when the interval is new, or not what was said last."""
        seconds, step_s = interval.seconds, self.step_s
        self.context.ckpt_interval_s = round(seconds, 3)
        if not step_s or _alike(seconds, self._told):
            return
        self._told = seconds
        save = typical_of(self.costs)
        self.context.events.write(
            Kind.CHECKPOINT_INTERVAL,
            step=self.context.step,
            interval_s=round(seconds, 3),
            interval_steps=interval.steps(step_s),
            bound=interval.bound,
            blocked_s=round(save.blocked_s, 6),
            slowed_s=round(save.slowed_s, 6),
            save_s=round(save.save_s, 6),
            mttf_s=round(self.mttf_s),
            failures=self.history.failures,
        )


def _alike(seconds: float, told: float | None) -> bool:
    return told is not None and told / WORTH_TELLING <= seconds <= told * WORTH_TELLING


def auto_save(context: RankContext, config: RunConfig, saver: Saver | None) -> AutoSave | None:
    """Rank 0's, where ``ckpt_every_steps`` is ``auto`` and there are checkpoints at all.

    What earlier attempts measured holds until this one has measured; a run that knows nothing
    saves early (``cadence.first_is_due``).
    """
    if config.step_scheduler.ckpt_every_steps != "auto" or saver is None or context.rank != 0:
        return None
    known = read_save_cost(context.run_dir.events(0))
    return AutoSave(
        context,
        saver,
        node_mttf_s=config.resilience.mttf,
        nodes=-(-context.world_size // context.local_world_size),
        history=read_history(context.run_dir, context.attempt),
        costs=deque([known] if known else [], maxlen=RECENT_SAVES),
    )
