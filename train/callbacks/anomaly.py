"""Steps that went wrong, judged before the optimizer runs: a pure function of the curve so far.

Loss and gradient norm are sums over all ranks, so every rank comes to the same verdict without
asking. What is remembered (``Memory``) travels in the checkpoint, so a resumed run judges as the
undisturbed one. Imports no torch.
"""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum

from submitrain.config.job import ResilienceConfig
from submitrain.rollbacks import Skips

MAD_TO_SIGMA = 1.4826
"""Median absolute deviation to standard deviation, for normally distributed values."""
LEAST_SPREAD = 0.01
"""Share of the median loss that counts as its spread at the least: a flat curve has none."""


class Verdict(StrEnum):
    """What becomes of a step."""

    APPLY = "applied"
    """The update is made."""
    WARN = "warned"
    """The update is made, and the loss is recorded as a spike."""
    SKIP = "skipped"
    """No update; the step counts and its data is consumed."""
    ROLLBACK = "rollback"
    """No update; all ranks end, and the run goes back."""


@dataclass(frozen=True)
class Place:
    """A step and the data it consumed: positions ``start`` to ``stop`` (not included)."""

    step: int
    start: int
    stop: int


@dataclass(frozen=True)
class Memory:
    """What is remembered of earlier steps; the same on every rank."""

    losses: tuple[float, ...] = ()
    """Newest losses of applied steps after warm-up, oldest first."""
    left_out: tuple[Place, ...] = ()
    """Steps without an update, as far as the window reaches."""
    streak: tuple[Place, ...] = ()
    """Steps in a row, up to now, whose loss was far above the usual."""
    applied: Place | None = None
    """Newest step with an update."""

    @property
    def first_suspect(self) -> int | None:
        """First step that a rollback might still have to undo; None when all is well."""
        return min((place.step for place in (*self.left_out, *self.streak)), default=None)

    def text(self) -> str:
        """One line of JSON; floats come back exactly."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def parse(cls, text: object) -> Memory:
        """Inverse of ``text``; nothing is remembered of anything else."""
        try:
            value = json.loads(str(text))
            applied = value["applied"]
            return cls(
                losses=tuple(float(loss) for loss in value["losses"]),
                left_out=tuple(Place(**place) for place in value["left_out"]),
                streak=tuple(Place(**place) for place in value["streak"]),
                applied=None if applied is None else Place(**applied),
            )
        except (ValueError, KeyError, TypeError):
            return cls()


MEMORY_KEY = "anomaly"
"""Where a checkpoint's ``TrainState.extra`` keeps the memory."""


def remembered(extra: Mapping[str, object]) -> Memory:
    """The memory that a checkpoint holds."""
    return Memory.parse(extra.get(MEMORY_KEY))


@dataclass(frozen=True)
class Observed:
    """A step before its update, as all ranks see it."""

    place: Place
    loss: float
    grad_norm: float
    weights_finite: bool = True
    """Whether the model itself is; looked at only when the step is not finite."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class Judgement:
    """The verdict on one step, and what is remembered from now on."""

    verdict: Verdict
    memory: Memory
    what: str = ""
    """``not_finite``, ``weights_not_finite`` or ``loss_spike``; empty when all is well."""
    z: float | None = None
    """Robust standard deviations above the median; None while there is too little to compare."""
    undone: tuple[Place, ...] = ()
    """With ROLLBACK: the steps whose data is to be left out, this one included."""

    @property
    def skips(self) -> Skips:
        """The data of the steps that are undone."""
        return Skips.of((place.start, place.stop) for place in self.undone)


def robust_z(loss: float, usual: Sequence[float]) -> float:
    """How far ``loss`` is above the median of ``usual``, in robust standard deviations.

    Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): 1.4826 MAD stands for the
    standard deviation. Below the median it is negative, so a falling loss is never a spike.
    """
    median = statistics.median(usual)
    mad = statistics.median([abs(value - median) for value in usual])
    spread = max(MAD_TO_SIGMA * mad, LEAST_SPREAD * abs(median), math.ulp(0.0) * 2**60)
    return (loss - median) / spread


def judge(
    memory: Memory, seen: Observed, limits: ResilienceConfig, *, warmup_steps: int
) -> Judgement:
    """Verdict on a step whose update is not made yet.

    Not finite: left out; rolled back when more than ``max_skipped_steps`` of the last
    ``anomaly_window_steps`` were left out, or at once when the weights are not finite either: then
    the last update is to blame. Spike: ``loss_spike_steps`` in a row above ``loss_spike_z``.
    """
    place = seen.place
    oldest = place.step - limits.anomaly_window_steps
    memory = replace(memory, left_out=tuple(p for p in memory.left_out if p.step > oldest))
    if not seen.finite:
        if seen.weights_finite:
            return _left_out(memory, place, limits, "not_finite", None)
        blamed = () if memory.applied is None else (memory.applied,)
        undone = (*blamed, *memory.left_out, place)
        return Judgement(Verdict.ROLLBACK, memory, "weights_not_finite", None, undone)
    z = None
    if limits.loss_spike != "off" and len(memory.losses) >= limits.anomaly_window_steps:
        z = robust_z(seen.loss, memory.losses)
    if z is None or z <= limits.loss_spike_z:
        return Judgement(
            Verdict.APPLY, _applied(replace(memory, streak=()), seen, limits, warmup_steps), z=z
        )
    memory = replace(memory, streak=(*memory.streak, place))
    return _spiked(memory, seen, limits, z, warmup_steps)


def _spiked(
    memory: Memory, seen: Observed, limits: ResilienceConfig, z: float, warmup_steps: int
) -> Judgement:
    length = len(memory.streak)
    if length < limits.loss_spike_steps or limits.loss_spike == "warn":
        told = length == limits.loss_spike_steps
        return Judgement(
            Verdict.WARN if told else Verdict.APPLY,
            _applied(memory, seen, limits, warmup_steps),
            "loss_spike" if told else "",
            z,
        )
    if limits.loss_spike == "skip":
        return _left_out(memory, seen.place, limits, "loss_spike", z)
    undone = (*memory.left_out, *memory.streak)
    return Judgement(Verdict.ROLLBACK, memory, "loss_spike", z, undone)


def _left_out(
    memory: Memory, place: Place, limits: ResilienceConfig, what: str, z: float | None
) -> Judgement:
    """Skip a step, or roll back where too many were skipped already."""
    memory = replace(memory, left_out=(*memory.left_out, place))
    if len(memory.left_out) <= limits.max_skipped_steps:
        return Judgement(Verdict.SKIP, memory, what, z)
    streak = memory.streak if limits.loss_spike in ("skip", "rollback") else ()
    return Judgement(Verdict.ROLLBACK, memory, what, z, (*streak, *memory.left_out))


def _applied(memory: Memory, seen: Observed, limits: ResilienceConfig, warmup_steps: int) -> Memory:
    losses = memory.losses
    if limits.loss_spike != "off" and seen.place.step > warmup_steps:
        losses = (*losses, seen.loss)[-limits.anomaly_window_steps :]
    return replace(memory, losses=losses, applied=seen.place)
