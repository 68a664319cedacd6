"""Anomaly check before a step's update: apply it, warn, skip it, or roll the run back.

A pure function of the losses so far. Loss and gradient norm are sums over all ranks, so every rank
comes to the same result without asking. ``AnomalyHistory`` travels in the checkpoint, so a resumed
run decides as the undisturbed one. Imports no torch.
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
HISTORY_KEY = "anomaly"
"""Where a checkpoint's ``TrainState.extra`` keeps the history."""


class AnomalyAction(StrEnum):
    """What happens with a step's update."""

    APPLY = "applied"
    """It is made."""
    WARN = "warned"
    """It is made, and the loss is recorded as a spike."""
    SKIP = "skipped"
    """It is not made; the step counts and its data is consumed."""
    ROLLBACK = "rollback"
    """It is not made; all ranks end, and the run goes back to an earlier checkpoint."""


@dataclass(frozen=True)
class StepSpan:
    """A step and the data it consumed: positions ``start`` to ``stop`` (not included)."""

    step: int
    start: int
    stop: int


@dataclass(frozen=True)
class AnomalyHistory:
    """What is kept of earlier steps; the same on every rank."""

    losses: tuple[float, ...] = ()
    """Newest losses of applied steps after warm-up, oldest first."""
    left_out: tuple[StepSpan, ...] = ()
    """Steps without an update, as far as the window reaches."""
    streak: tuple[StepSpan, ...] = ()
    """Consecutive steps, up to now, whose loss was far above the usual."""
    applied: StepSpan | None = None
    """Newest step with an update."""

    @property
    def first_suspect(self) -> int | None:
        """First step that a rollback might still have to undo; None when all is well."""
        return min((span.step for span in (*self.left_out, *self.streak)), default=None)

    def text(self) -> str:
        """One line of JSON; floats come back exactly."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @classmethod
    def of(cls, extra: Mapping[str, object]) -> AnomalyHistory:
        """The history that a checkpoint's ``extra`` holds; an empty one where it holds none."""
        try:
            value = json.loads(str(extra.get(HISTORY_KEY)))
            applied = value["applied"]
            return cls(
                losses=tuple(float(loss) for loss in value["losses"]),
                left_out=tuple(StepSpan(**span) for span in value["left_out"]),
                streak=tuple(StepSpan(**span) for span in value["streak"]),
                applied=None if applied is None else StepSpan(**applied),
            )
        except (ValueError, KeyError, TypeError):
            return cls()


@dataclass(frozen=True)
class ObservedStep:
    """A step before its update, as all ranks see it."""

    span: StepSpan
    loss: float
    grad_norm: float
    weights_finite: bool = True
    """Whether the model itself is; only checked when the step is not finite."""

    @property
    def finite(self) -> bool:
        """Whether loss and gradient norm are numbers."""
        return math.isfinite(self.loss) and math.isfinite(self.grad_norm)


@dataclass(frozen=True)
class AnomalyResult:
    """The outcome of the check of one step, and the history from now on."""

    action: AnomalyAction
    history: AnomalyHistory
    what: str = ""
    """``not_finite``, ``weights_not_finite`` or ``loss_spike``; empty when all is well."""
    z: float | None = None
    """Robust standard deviations above the median; None while there is too little to compare."""
    undone: tuple[StepSpan, ...] = ()
    """With ROLLBACK: the steps whose data is to be left out, this one included."""

    @property
    def should_apply(self) -> bool:
        """Whether the optimizer may run."""
        return self.action in (AnomalyAction.APPLY, AnomalyAction.WARN)

    @property
    def skips(self) -> Skips:
        """The data of the steps that are undone."""
        return Skips.of((span.start, span.stop) for span in self.undone)


def robust_z(loss: float, usual: Sequence[float]) -> float:
    """How far ``loss`` is above the median of ``usual``, in robust standard deviations.

    Iglewicz and Hoaglin, How to Detect and Handle Outliers (1993): 1.4826 MAD stands for the
    standard deviation. Below the median it is negative, so a falling loss is never a spike.
    """
    median = statistics.median(usual)
    mad = statistics.median([abs(value - median) for value in usual])
    spread = max(MAD_TO_SIGMA * mad, LEAST_SPREAD * abs(median), math.ulp(0.0) * 2**60)
    return (loss - median) / spread


def check_step(
    history: AnomalyHistory, seen: ObservedStep, limits: ResilienceConfig, *, warmup_steps: int
) -> AnomalyResult:
    """Decide about a step whose update is not made yet.

    Not finite: left out; rolled back when more than ``max_skipped_steps`` of the last
    ``anomaly_window_steps`` were left out, or at once when the weights are not finite either: then
    the last update is to blame. Spike: ``loss_spike_steps`` in a row above ``loss_spike_z``.
    """
    oldest = seen.span.step - limits.anomaly_window_steps
    history = replace(history, left_out=tuple(s for s in history.left_out if s.step > oldest))
    if not seen.finite and seen.weights_finite:
        return _leave_out(history, seen.span, limits, "not_finite", None)
    if not seen.finite:
        blamed = () if history.applied is None else (history.applied,)
        undone = (*blamed, *history.left_out, seen.span)
        return AnomalyResult(AnomalyAction.ROLLBACK, history, "weights_not_finite", None, undone)

    watched = limits.loss_spike != "off"
    z = None
    if watched and len(history.losses) >= limits.anomaly_window_steps:
        z = robust_z(seen.loss, history.losses)
    high = z is not None and z > limits.loss_spike_z
    streak = (*history.streak, seen.span) if high else ()
    history = replace(history, streak=streak)
    if len(streak) >= limits.loss_spike_steps and limits.loss_spike == "skip":
        return _leave_out(history, seen.span, limits, "loss_spike", z)
    if len(streak) >= limits.loss_spike_steps and limits.loss_spike == "rollback":
        undone = (*history.left_out, *streak)
        return AnomalyResult(AnomalyAction.ROLLBACK, history, "loss_spike", z, undone)

    losses = history.losses
    if watched and seen.span.step > warmup_steps:
        losses = (*losses, seen.loss)[-limits.anomaly_window_steps :]
    history = replace(history, losses=losses, applied=seen.span)
    if len(streak) == limits.loss_spike_steps:
        return AnomalyResult(AnomalyAction.WARN, history, "loss_spike", z)
    return AnomalyResult(AnomalyAction.APPLY, history, z=z)


def _leave_out(
    history: AnomalyHistory, span: StepSpan, limits: ResilienceConfig, what: str, z: float | None
) -> AnomalyResult:
    """Skip a step, or roll back where too many were skipped already."""
    history = replace(history, left_out=(*history.left_out, span))
    if len(history.left_out) <= limits.max_skipped_steps:
        return AnomalyResult(AnomalyAction.SKIP, history, what, z)
    streak = history.streak if limits.loss_spike in ("skip", "rollback") else ()
    undone = (*streak, *history.left_out)
    return AnomalyResult(AnomalyAction.ROLLBACK, history, what, z, undone)
