"""When the next checkpoint is due where ``ckpt_every_steps`` is ``auto``. Pure, no torch.

Interval: ``sqrt(2 C M)`` (Young 1974, doi:10.1145/361147.361115; Daly 2006,
doi:10.1016/j.future.2004.11.016), C what a save costs training, M the mean time to failure.

What a run's folder says of its earlier attempts: failures, and what saves cost. No torch.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt, read_attempts
from submitrain.events import Kind, parse_event
from submitrain.run_folder import RunDir

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


@dataclass(frozen=True)
class SaveCost:
    """One save in seconds."""

    blocked_s: float
    """Training stood still."""
    save_s: float
    """From its beginning to its publication."""
    slowed_s: float = 0.0
    """What the steps beside it took longer than others."""

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


def slowdown_s(beside: Sequence[float], usual: Sequence[float], background_s: float) -> float:
    """Seconds that steps lost to a save in the background; 0 while nothing is known of others.

    Args:
        beside: durations of the steps beside the save.
        usual: durations of steps beside no save.
        background_s: how long the save went on in the background: it cannot have cost more.
    """
    if not usual:
        return 0.0
    longer_s = sum(beside) - len(beside) * statistics.median(usual)
    return min(max(0.0, longer_s), max(0.0, background_s))


def typical(saves: Sequence[SaveCost]) -> SaveCost:
    """The middle of some saves, part by part: a single slow one decides nothing."""
    return SaveCost(
        blocked_s=statistics.median(save.blocked_s for save in saves),
        save_s=statistics.median(save.save_s for save in saves),
        slowed_s=statistics.median(save.slowed_s for save in saves),
    )


def first_is_due(steps: int, age_s: float) -> bool:
    """Whether the first save is due at a step's end, before any has been measured."""
    return steps >= FIRST_STEPS or age_s >= FIRST_S


TAIL_BYTES = 16 * 1024 * 1024
"""Of rank 0's events; half an hour of fast steps."""


@dataclass(frozen=True)
class History:
    """Failures of a run so far, in the seconds that its attempts have lasted."""

    failures: int = 0
    observed_s: float = 0.0

    def rate(self, *, node_mttf_s: float, nodes: int, more_s: float) -> FailureRate:
        """Together with a belief about nodes, after ``more_s`` further quiet seconds."""
        return FailureRate(node_mttf_s, nodes, self.failures, self.observed_s + more_s)


def read_history(run_dir: RunDir, attempt: int) -> History:
    """Failures and time of the attempts before ``attempt``, and its own time until now."""
    attempts = [one for one in read_attempts(run_dir) if one.number <= attempt]
    observed_s = 0.0
    for one in attempts:
        until = one.ended_at
        if until is None and one.number == attempt:
            until = time.time()
        observed_s += max(0.0, (until or one.started_at) - one.started_at)
    return History(sum(map(lost_work, attempts)), observed_s)


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
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit_bytes))
            lines = [line for line in file.read().splitlines(keepends=True) if _about_saves(line)]
    except OSError:
        return None
    newest: dict[str, SaveCost] = {}
    for line in lines:
        event = parse_event(line)
        cost = _cost(event) if event else None
        if event and cost:
            newest[event["kind"]] = cost
    return newest.get(Kind.CHECKPOINT_INTERVAL) or newest.get(Kind.CHECKPOINT)


def _about_saves(line: bytes) -> bool:
    """A line cheap to recognise: very few of them have to be parsed."""
    return b'"kind":"checkpoint' in line


def _cost(event: Mapping[str, Any]) -> SaveCost | None:
    values = [event.get("blocked_s"), event.get("save_s"), event.get("slowed_s", 0.0)]
    if not all(isinstance(value, int | float) for value in values):
        return None
    blocked_s, save_s, slowed_s = (float(value) for value in values if value is not None)
    return SaveCost(blocked_s, save_s, slowed_s)
