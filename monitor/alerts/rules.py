"""Rules about the training's health: loss, checkpoints, the disk beneath them. Pure.

The usual loss and its spread over a moving window. Pure.

A watcher asks for every step of every run, so most answers have to come without the spread.

Judges a snapshot of a run: what is wrong, how bad, and what to do. Pure.

Every rule answers in three values: findings (it fires), nothing (it does not), or "cannot tell"; an
alert neither begins nor ends on what cannot be told.
"""

from __future__ import annotations

import math
import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

from submitrain.monitor.alerts.run_rules import (
    crash_loop,
    failed,
    finished,
    hang,
    hours,
    queue,
    requeued,
    straggler,
    throughput,
)
from submitrain.monitor.watch.snapshot import (
    Answer,
    Finding,
    Limits,
    Rule,
    Severity,
    Snapshot,
    Unknown,
    Verdicts,
)

WINDOW = 128
MAD_TO_SIGMA = 1.4826
"""Standard deviations in a median absolute deviation, of a normal distribution."""


class UsualLosses:
    """The last usual losses, by time and by size."""

    def __init__(self) -> None:
        self.values: list[float] = []
        """By size."""
        self._by_time: deque[float] = deque()

    def add(self, value: float) -> None:
        """Take a loss in; beyond the window the oldest leaves."""
        if len(self._by_time) == WINDOW:
            del self.values[bisect_left(self.values, self._by_time.popleft())]
        self._by_time.append(value)
        insort(self.values, value)

    @property
    def median(self) -> float:
        """The middle of them."""
        middle, odd = divmod(len(self.values), 2)
        if odd:
            return self.values[middle]
        return (self.values[middle - 1] + self.values[middle]) / 2

    def z_above(self, value: float, limit: float) -> float | None:
        """By how many deviations a loss is above the median, None where that is at most ``limit``.

        Less than half of the values lie strictly between the quartiles, so the median absolute
        deviation is at least the distance of the median to the nearer one: that mostly decides.
        """
        count, usual = len(self.values), self.median
        low, high = self.values[count // 4], self.values[count - 1 - count // 4]
        least = max(0.0, min(usual - low, high - usual))
        floor = max(1e-3 * abs(usual), 1e-12)
        if value - usual <= limit * max(MAD_TO_SIGMA * least, floor) * (1 - 1e-9):
            return None
        spread = MAD_TO_SIGMA * statistics.median(abs(one - usual) for one in self.values)
        z = (value - usual) / max(spread, floor)
        return z if z > limit else None


MIN_LOSSES = 20
"""Losses from which on "usual" means something."""
MIN_TREND_S = 1800.0
"""A trend of free space needs at least so much time, and ``MIN_TREND`` points."""
MIN_TREND = 5


def loss(snapshot: Snapshot, limits: Limits) -> Answer:
    """NaN or infinity at once; a spike after some steps far above the usual."""
    new = [one for one in snapshot.steps if one.step > snapshot.samples.seen_step]
    bad = next((one for one in new if one.loss is not None and not math.isfinite(one.loss)), None)
    skipped = next((one for one in snapshot.anomalies if "finite" in one[1]), None)
    if bad is not None or skipped is not None:
        step = bad.step if bad is not None else (skipped or (0,))[0]
        done = f"; the training itself: {skipped[2]}" if skipped else ""
        text = f"loss or gradients are not finite at step {step}{done}"
        todo = "lower the learning rate, clip gradients, or look at the data of that step"
        return [Finding(Rule.LOSS, "not finite", Severity.CRITICAL, text, todo)]
    return _spike(snapshot, limits)


def _spike(snapshot: Snapshot, limits: Limits) -> Answer:
    told = next((one for one in snapshot.anomalies if one[1] == "loss_spike"), None)
    todo = "look at the data of that step and at the learning rate"
    if told is not None:
        text = f"loss spike at step {told[0]}; the training itself: {told[2]}"
        return [Finding(Rule.LOSS, "spike", Severity.WARNING, text, todo)]
    points = [
        (one.step, one.loss)
        for one in snapshot.steps
        if one.loss is not None and math.isfinite(one.loss)
    ]
    if snapshot.state.ended:
        return []
    if len(points) < MIN_LOSSES + limits.loss_spike_steps:
        return Unknown("too few losses to know the usual one")
    found = spike(points, limits, after=snapshot.samples.seen_step - limits.loss_spike_steps)
    if found is None:
        return []
    step, value, usual, z = found
    text = (
        f"loss {value:.4g} at step {step}, usual is {usual:.4g} (z {z:.1f} for "
        f"{limits.loss_spike_steps} steps)"
    )
    return [Finding(Rule.LOSS, "spike", Severity.WARNING, text, todo)]


def spike(
    points: Sequence[tuple[int, float]], limits: Limits, *, after: int
) -> tuple[int, float, float, float] | None:
    """The first (step, loss, usual, z) with enough high losses in a row, beyond step ``after``."""
    in_a_row = 0
    usual = UsualLosses()
    for step, value in points:
        if len(usual.values) < MIN_LOSSES:
            usual.add(value)
            continue
        z = usual.z_above(value, limits.loss_spike_z)
        if z is None:
            # Only these count as usual: a spike would hide itself.
            in_a_row = 0
            usual.add(value)
            continue
        in_a_row += 1
        if in_a_row >= limits.loss_spike_steps and step > after:
            return step, value, usual.median, z
    return None


def checkpoint(snapshot: Snapshot, limits: Limits) -> Answer:
    """The last save failed, or the last committed one is too far behind."""
    facts = snapshot.checkpoints
    if facts.interval_steps is None or snapshot.state.ended:
        return []
    if facts.failed is not None:
        step, reason = facts.failed
        text = f"the checkpoint of step {step} could not be saved: {reason}"
        todo = "make room or mend the file system; training goes on unprotected until then"
        return [Finding(Rule.CHECKPOINT, "failed", Severity.CRITICAL, text, todo)]
    behind = snapshot.step - facts.committed_step
    if behind <= limits.checkpoint_intervals * facts.interval_steps:
        return []
    text = (
        f"step {snapshot.step}, last committed checkpoint at step {facts.committed_step}: {behind} "
        f"steps, the interval is {facts.interval_steps}"
    )
    todo = "look for checkpoint_failed events and at the file system's speed"
    return [Finding(Rule.CHECKPOINT, "overdue", Severity.WARNING, text, todo)]


def disk(snapshot: Snapshot, limits: Limits) -> Answer:
    """Nothing can be written, no room for the next checkpoints, or soon none."""
    facts = snapshot.disk
    if snapshot.state.ended:
        return []
    if facts is None:
        return Unknown("not looked at")
    if not facts.answered:
        return Unknown(facts.problem or f"{facts.path} does not answer")
    todo = f"free space at {facts.path} or raise the quota; keep_last_n_checkpoints keeps fewer"
    if facts.problem:
        text = f"cannot write to {facts.path}: {facts.problem}"
        return [Finding(Rule.DISK, "write", Severity.CRITICAL, text, todo)]
    if facts.free_bytes is None:
        return Unknown(f"free space at {facts.path} is not known")
    size = snapshot.checkpoints.committed_bytes
    if size and facts.free_bytes < limits.disk_checkpoints * size:
        text = (
            f"{gib(facts.free_bytes)} free at {facts.path}, a checkpoint takes {gib(size)}: less "
            f"than {limits.disk_checkpoints:g}"
        )
        return [Finding(Rule.DISK, "space", Severity.CRITICAL, text, todo)]
    full_s = full_in_s(snapshot.samples.free)
    if full_s is None or full_s > limits.disk_full_h * 3600:
        return []
    left = gib(facts.free_bytes)
    text = f"{facts.path} is full in {hours(full_s)} at the present pace ({left} free)"
    return [Finding(Rule.DISK, "trend", Severity.WARNING, text, todo)]


def full_in_s(points: Sequence[tuple[float, float]]) -> float | None:
    """Seconds until nothing is free, by the median slope (Theil-Sen); None = no such trend."""
    thinned = points[:: max(1, len(points) // 60)]
    if len(thinned) < MIN_TREND or thinned[-1][0] - thinned[0][0] < MIN_TREND_S:
        return None
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(thinned)
        for later in thinned[index + 1 :]
        if later[0] > earlier[0]
    ]
    slope = statistics.median(slopes)
    return points[-1][1] / -slope if slope < 0 else None


def gib(count: float) -> str:
    """``1.5 GiB``"""
    for unit in ("B", "KiB", "MiB"):
        if count < 1024:
            return f"{count:.3g} {unit}"
        count /= 1024
    return f"{count:,.1f} GiB"


RULES = {
    Rule.HANG: hang,
    Rule.STRAGGLER: straggler,
    Rule.THROUGHPUT: throughput,
    Rule.LOSS: loss,
    Rule.CHECKPOINT: checkpoint,
    Rule.DISK: disk,
    Rule.CRASH_LOOP: crash_loop,
    Rule.FAILED: failed,
    Rule.REQUEUED: requeued,
    Rule.QUEUE: queue,
    Rule.FINISHED: finished,
}


def judge(snapshot: Snapshot, limits: Limits) -> Verdicts:
    """What every rule says of a run."""
    found: list[Finding] = []
    unknown: dict[Rule, str] = {}
    for rule, check in RULES.items():
        answer = check(snapshot, limits)
        if isinstance(answer, Unknown):
            unknown[rule] = answer.why
        else:
            found.extend(answer)
    return Verdicts(tuple(found), unknown)
