"""Automatic checkpoint intervals (``ckpt_every_steps: auto``). Imports no torch.

Rank 0 measures what a save costs and alone decides, by its clock, after which step the next one is
due; its wish reaches the others in the all-reduce that every step begins with, so that all save
after the same step. Saving never changes what is trained.

Interval: ``sqrt(2 C M)`` (Young 1974, doi:10.1145/361147.361115; Daly 2006,
doi:10.1016/j.future.2004.11.016), C what a save costs training, M the mean time to failure.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from submitrain.attempts import Attempt, read_attempts
from submitrain.config import RunConfig
from submitrain.events import Kind, parse_event
from submitrain.run_folder import RunDir
from submitrain.text import read_end
from submitrain.train.context import RankContext

FIRST_STEPS = 10
FIRST_S = 60.0
"""The first save of a run whose cost nobody knows comes after so many steps or seconds, whichever
is sooner: it measures the cost, and proves early that saving works at all."""
MOST_AT_RISK_S = 1800.0
"""Never more than half an hour of work that is in no published checkpoint."""
MOST_SHARE = 0.1
"""Never more than this share of the time for saves."""
LEAST_INTERFERENCE = 0.01
"""Share of a background save's time that training loses at the least: memory, network, files."""
SAVES_APART = 2.0
"""Never closer than so many times a whole save, background included: saves must not overlap."""
RECENT_STEPS = 50
RECENT_SAVES = 5
WORTH_ANNOUNCING = 1.2
"""An interval is announced when it has changed by this factor."""
TAIL_BYTES = 16 * 1024 * 1024
"""Of rank 0's events; half an hour of fast steps."""


@dataclass(frozen=True)
class SaveCost:
    """One save in seconds."""

    blocked_s: float
    """Training stood still."""
    save_s: float
    """From its beginning to its publication."""
    slowed_s: float = 0.0
    """What the steps during it took longer than others."""

    @property
    def cost_s(self) -> float:
        """What it cost training; never less than ``LEAST_INTERFERENCE``, which noise may hide."""
        background_s = max(0.0, self.save_s - self.blocked_s)
        return self.blocked_s + max(self.slowed_s, LEAST_INTERFERENCE * background_s)


@dataclass(frozen=True)
class FailureRate:
    """What is known of failures: a belief about nodes, and what the run itself has seen."""

    node_mttf_s: float
    """Mean time to failure of one node."""
    nodes: int
    failures: int = 0
    """Attempts of this run that lost work, in ``observed_s`` of all its attempts."""
    observed_s: float = 0.0

    @property
    def mttf_s(self) -> float:
        """Mean time to failure of the whole run: both rates add up.

        So a run without failures has the belief, and each failure of its own shortens that. Quiet
        time makes the second part fade, but is never taken for better nodes.
        """
        own = self.failures / max(1.0, self.observed_s)
        return 1.0 / (self.nodes / self.node_mttf_s + own)


@dataclass(frozen=True)
class Interval:
    """Seconds of training between two saves: the best, and its bounds (``least_s`` wins)."""

    best_s: float
    least_s: float
    most_s: float

    @property
    def seconds(self) -> float:
        """The best within its bounds."""
        return max(min(self.best_s, self.most_s), self.least_s)

    @property
    def bound(self) -> str:
        """Which of them decides: ``cost``, ``formula`` or ``risk``."""
        if self.seconds == self.least_s:
            return "cost"
        return "formula" if self.seconds == self.best_s else "risk"

    def due(self, age_s: float, step_s: float) -> bool:
        """Whether to save at a step's end, ``age_s`` after the last save.

        The boundary nearest to the best, but not before ``least_s``, and the last one that is not
        after ``most_s``.
        """
        if age_s < self.least_s:
            return False
        return age_s + step_s / 2 >= self.best_s or age_s + step_s > self.most_s

    def steps(self, step_s: float) -> int:
        """About so many steps of ``step_s`` seconds."""
        return max(1, round(self.seconds / step_s))


def interval_of(save: SaveCost, mttf_s: float) -> Interval:
    """The interval for saves like ``save`` at a mean time to failure."""
    return Interval(
        best_s=math.sqrt(2.0 * save.cost_s * mttf_s),
        least_s=max(save.cost_s * (1.0 - MOST_SHARE) / MOST_SHARE, SAVES_APART * save.save_s),
        most_s=MOST_AT_RISK_S - save.save_s,
    )


def slowdown_s(during: Sequence[float], usual: Sequence[float], background_s: float) -> float:
    """Seconds that steps lost to a save in the background; 0 while nothing is known of others.

    Args:
        during: durations of the steps during the save.
        usual: durations of steps during no save.
        background_s: how long the save went on in the background: it cannot have cost more.
    """
    if not usual:
        return 0.0
    longer_s = sum(during) - len(during) * statistics.median(usual)
    return min(max(0.0, longer_s), max(0.0, background_s))


def median_cost(saves: Sequence[SaveCost]) -> SaveCost:
    """The median of some saves, part by part: a single slow one decides nothing."""
    return SaveCost(
        blocked_s=statistics.median(save.blocked_s for save in saves),
        save_s=statistics.median(save.save_s for save in saves),
        slowed_s=statistics.median(save.slowed_s for save in saves),
    )


def first_is_due(steps: int, age_s: float) -> bool:
    """Whether the first save is due at a step's end, before any has been measured."""
    return steps >= FIRST_STEPS or age_s >= FIRST_S


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
    rate: FailureRate
    """As of the beginning of this attempt's training."""
    costs: deque[SaveCost] = field(default_factory=lambda: deque(maxlen=RECENT_SAVES))
    clock: Callable[[], float] = time.monotonic

    def __post_init__(self) -> None:
        self._began = self._last_save = self._step_began = self.clock()
        self._steps = 0
        self._first = True
        self._usual: deque[float] = deque(maxlen=RECENT_STEPS)
        self._during_save: list[float] = []
        self._in_flight = False
        self._announced_s: float | None = None

    @property
    def step_s(self) -> float:
        """What a step takes; 0.0 while nobody knows."""
        return statistics.median(self._usual) if self._usual else 0.0

    @property
    def mttf_s(self) -> float:
        """Mean time to failure of the run, as of now."""
        observed_s = self.rate.observed_s + self.clock() - self._began
        return replace(self.rate, observed_s=observed_s).mttf_s

    @property
    def interval(self) -> Interval | None:
        """The interval as of now; None before a save was measured."""
        return interval_of(median_cost(self.costs), self.mttf_s) if self.costs else None

    def wants(self) -> bool:
        """Before a step: whether to save after it."""
        if self._in_flight and self.saver.ready():
            # A save has ended, one way or another: a failed one costs as much.
            self._in_flight = False
            if (cost := self.saver.newest_cost) is not None:
                background_s = cost.save_s - cost.blocked_s
                slowed_s = slowdown_s(self._during_save, self._usual, background_s)
                self.costs.append(replace(cost, slowed_s=slowed_s))
        self._step_began = self.clock()
        if self._in_flight:
            return False
        age_s = self._step_began - self._last_save + self.step_s
        interval = self.interval
        if interval is None:
            return first_is_due(self._steps + 1, age_s)
        self._announce(interval)
        return interval.due(age_s, self.step_s)

    def stepped(self, data_wait_s: float) -> None:
        """After a step, for whose data this rank waited before ``wants``."""
        duration_s = data_wait_s + self.clock() - self._step_began
        self._steps += 1
        if self._in_flight:
            self._during_save.append(duration_s)
        elif not self._first:  # which compiles, and fills caches
            self._usual.append(duration_s)
        self._first = False

    def saved(self) -> None:
        """After a save has begun; without ``async_save`` it is over already."""
        self._last_save = self.clock()
        self._steps = 0
        self._in_flight = True
        self._during_save = []

    def _announce(self, interval: Interval) -> None:
        """Write an event when the interval is new, or not what was said last."""
        seconds, step_s, announced_s = interval.seconds, self.step_s, self._announced_s
        self.context.ckpt_interval_s = round(seconds, 3)
        alike = (
            announced_s is not None
            and announced_s / WORTH_ANNOUNCING <= seconds <= announced_s * WORTH_ANNOUNCING
        )
        if not step_s or alike:
            return
        self._announced_s = seconds
        save = median_cost(self.costs)
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
            failures=self.rate.failures,
        )


def auto_save(context: RankContext, config: RunConfig, saver: Saver | None) -> AutoSave | None:
    """Rank 0's, where ``ckpt_every_steps`` is ``auto`` and there are checkpoints at all.

    What earlier attempts measured holds until this one has measured; a run that knows nothing
    saves early (``first_is_due``).
    """
    if config.step_scheduler.ckpt_every_steps != "auto" or saver is None or context.rank != 0:
        return None
    known = read_save_cost(context.run_dir.events(0))
    nodes = -(-context.world_size // context.local_world_size)
    failures, observed_s = read_failures(context.run_dir, context.attempt)
    return AutoSave(
        context,
        saver,
        FailureRate(config.resilience.mttf, nodes, failures, observed_s),
        costs=deque([known] if known else [], maxlen=RECENT_SAVES),
    )


def read_failures(run_dir: RunDir, attempt: int) -> tuple[int, float]:
    """Failures before ``attempt``, and the seconds that all attempts lasted until now."""
    attempts = [one for one in read_attempts(run_dir) if one.number <= attempt]
    observed_s = 0.0
    for one in attempts:
        until = one.ended_at
        if until is None and one.number == attempt:
            until = time.time()
        observed_s += max(0.0, (until or one.started_at) - one.started_at)
    return sum(map(lost_work, attempts)), observed_s


def lost_work(attempt: Attempt) -> bool:
    """Whether steps were lost at an attempt's end.

    One that made no step has none to lose (most often its configuration was wrong), and one whose
    ranks all finished, or saved and stopped as asked, has lost none.
    """
    if attempt.cause is None or (attempt.last_step or 0) <= (attempt.first_step or 0):
        return False
    facts = attempt.evidence
    orderly = (facts.get("finished") or 0) + (facts.get("stopped") or 0)
    return bool(orderly < (facts.get("world_size") or 1))


def read_save_cost(path: Path, *, limit_bytes: int = TAIL_BYTES) -> SaveCost | None:
    """What saves cost by the end of rank 0's event file: as last announced, else the last save."""
    try:
        lines = read_end(path, limit_bytes).splitlines(keepends=True)
    except OSError:
        return None
    newest: dict[str, SaveCost] = {}
    for line in lines:
        # Cheap to recognise: very few lines have to be parsed.
        event = parse_event(line) if b'"kind":"checkpoint' in line else None
        values = [event.get("blocked_s"), event.get("save_s")] if event else [None]
        if event and all(isinstance(value, int | float) for value in values):
            slowed_s = event.get("slowed_s", 0.0)
            newest[event["kind"]] = SaveCost(*map(float, (*values, slowed_s)))
    return newest.get(Kind.CHECKPOINT_INTERVAL) or newest.get(Kind.CHECKPOINT)
