"""Whether a step and a save fit before the time limit, and how often a run saves. Pure.

The lead is the time from the request to save and stop to the limit. Ranks that did not stop are
killed ``LAST_CALL_S`` before the limit (a third of the lead where that is less), so that the
supervisor can still requeue: what is left of the lead has to hold the step under way and a save.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from submitrain.config import RunConfig
from submitrain.config.types import format_duration
from submitrain.text import counted, duration
from submitrain.train.callbacks.autosave import (
    FIRST_S,
    FIRST_STEPS,
    FailureRate,
    SaveCost,
    interval_of,
)

LAST_CALL_S = 10.0
"""Seconds before the time limit at which ranks that did not stop are killed."""
MARGIN_S = 20.0
"""Seconds for ranks to leave, and for the requeue, beside the step and the save."""
SLOW_BYTES_PER_S = 200e6
"""Assumed of each node's writes for warnings and for leads that need not be set by hand: a shared
file system over 10 Gbit/s Ethernet under load. Nobody has measured yours at plan time."""
FAST_BYTES_PER_S = 2e9
"""Each node's writes to a parallel file system over a fast fabric: what does not fit even at this
rate is refused."""
_GB = 1e9


def stop_lead_s(
    *,
    configured: int | None,
    limit_s: float,
    step_s: float | None,
    save_s: float | None,
    unmeasured_s: float = 60.0,
) -> float:
    """Seconds before the time limit at which the ranks are asked to save and stop.

    One step to finish, twice the slowest save seen, and a margin for leaving and requeueing;
    ``unmeasured_s`` while no save of this run was measured. Never more than a quarter of the limit,
    so that short jobs train too.
    """
    if configured is not None:
        return float(configured)
    if save_s is not None:
        wanted = (step_s or 0.0) + 2.0 * save_s + MARGIN_S
    else:
        wanted = max(unmeasured_s, (step_s or 0.0) * 2)
    return min(wanted, limit_s / 4)


class Fit(StrEnum):
    """Whether the lead, configured or computed, holds a step and a save."""

    FITS = "fits"
    RAISED = "raised"
    LIMIT_TOO_SHORT = "limit_too_short"


@dataclass(frozen=True)
class Lead:
    """Seconds before the limit at which ranks are asked to stop, and why it is that many."""

    seconds: float
    fit: Fit = Fit.FITS
    why: str = ""


def least_lead_s(*, step_s: float, save_s: float) -> float:
    """The shortest lead in which a step and a save fit before ranks are killed."""
    needed = step_s + save_s
    return min(needed + LAST_CALL_S, 1.5 * needed)


def lead_of(
    *,
    configured: int | None,
    limit_s: float,
    step_s: float | None,
    save_s: float | None,
    unmeasured_s: float,
) -> Lead:
    """The lead by ``stop_lead_s``, raised where a measured save would not fit in it.

    A lead over half the limit would leave less time for training than for stopping: then it stays
    as it was, and the limit is what has to change.
    """
    base = stop_lead_s(
        configured=configured,
        limit_s=limit_s,
        step_s=step_s,
        save_s=save_s,
        unmeasured_s=unmeasured_s,
    )
    least = least_lead_s(step_s=step_s or 0.0, save_s=save_s or 0.0)
    if save_s is None or least <= base:
        return Lead(base)
    why = (
        f"a step of {step_s or 0.0:.1f} s and a save of {save_s:.1f} s, as measured, need "
        f"{least:.0f} s before the time limit, the lead is {base:.0f} s"
    )
    if least <= limit_s / 2:
        return Lead(least, Fit.RAISED, f"{why}: raised to {least:.0f} s")
    return Lead(
        base,
        Fit.LIMIT_TOO_SHORT,
        f"{why}, and that is over half of the limit ({format_duration(int(limit_s))}): "
        "steps since the last checkpoint may be lost at every limit; raise slurm.time",
    )


def deadline_problems(config: RunConfig, checkpoint_bytes: int | None) -> Iterator[str]:
    """Settings under which a save cannot fit, each with the arithmetic; nothing without a size."""
    if checkpoint_bytes is None or not config.checkpoint.enabled:
        return
    nodes, configured = config.slurm.nodes.min, config.resilience.stop_lead_s
    limit_s, lead_s = config.slurm.time, config.slurm.signal_lead_s
    save_s, arithmetic = _save(checkpoint_bytes, nodes, FAST_BYTES_PER_S)
    least = least_lead_s(step_s=0.0, save_s=save_s)
    if least > limit_s / 2:
        yield (
            f"slurm.time: expected at least {format_duration(int(2 * least) + 1)}, got "
            f"{format_duration(limit_s)}: {arithmetic}, so that saving before the limit takes "
            f"{least:.0f} s, more than half of it; raise slurm.time"
        )
    elif configured is None and lead_s < least:
        yield (
            f"slurm.signal_lead_s: expected at least {int(least) + 1}, got {lead_s}: {arithmetic}; "
            "until a save was measured ranks are asked to stop that many seconds before the limit"
        )
    save_s, arithmetic = _save(checkpoint_bytes, nodes, SLOW_BYTES_PER_S)
    needed = least_lead_s(step_s=0.0, save_s=save_s)
    if configured is not None and configured < needed:
        yield (
            f"resilience.stop_lead_s: expected at least {int(needed) + 1}, or none, got "
            f"{configured}: {arithmetic}, without the step under way; write none and the lead "
            "follows from what is measured"
        )


def deadline_warnings(
    config: RunConfig, checkpoint_bytes: int | None, kill_wait_s: int | None
) -> Iterator[str]:
    """What may be lost at an end without notice, given the cluster's KillWait in seconds."""
    wanted, lead_s = config.resilience.kill_wait_s, config.slurm.signal_lead_s
    if kill_wait_s is not None and wanted > kill_wait_s:
        yield (
            f"resilience.kill_wait_s is {wanted}, but this cluster kills {kill_wait_s} s after "
            f"TERM (KillWait): ranks get at most {kill_wait_s} s to save; write {kill_wait_s}"
        )
    if checkpoint_bytes is None or not config.checkpoint.enabled:
        return
    save_s, arithmetic = _save(checkpoint_bytes, config.slurm.nodes.min, SLOW_BYTES_PER_S)
    granted = min(wanted, kill_wait_s or wanted)
    if save_s > granted:
        yield (
            f"{arithmetic}, and ranks have {granted} s after TERM: a scancel or a preemption "
            "without grace time may cost the steps since the last checkpoint; see "
            "step_scheduler.ckpt_every_steps"
        )
    least = least_lead_s(step_s=0.0, save_s=save_s)
    if config.resilience.stop_lead_s is None and lead_s < least:
        yield (
            f"{arithmetic}; until a save was measured ranks are asked to stop "
            f"slurm.signal_lead_s ({lead_s}) seconds before the limit: {int(least) + 1} would be "
            "safe"
        )


def _save(checkpoint_bytes: int, nodes: int, rate: float) -> tuple[float, str]:
    """Seconds that a save takes at this rate, and the arithmetic."""
    seconds = checkpoint_bytes / (nodes * rate)
    return seconds, (
        f"a checkpoint of {checkpoint_bytes / _GB:.1f} GB / ({nodes} nodes x {rate / _GB:g} GB/s, "
        f"assumed) = {seconds:.0f} s"
    )


COPY_BYTES_PER_S = 1e9
"""Assumed of each rank's copy out of the way of training, before anybody has measured it."""


def saves_text(config: RunConfig, checkpoint_bytes: int | None) -> str:
    """How often the run saves; for an automatic interval what it is likely to be at first."""
    every = config.step_scheduler.ckpt_every_steps
    if not config.checkpoint.enabled:
        return "none: checkpoint.enabled is false"
    if config.entry is not None:
        return "where the training function publishes a checkpoint"
    if every is None:
        return "at the end, and when the run is stopped"
    if every != "auto":
        return f"every {every} steps"
    first = f"auto: first after {FIRST_STEPS} steps or {FIRST_S:.0f} s, to measure what one costs"
    if checkpoint_bytes is None:
        return f"{first}; then sqrt(2 x cost x MTTF)"
    save = assumed_cost(config, checkpoint_bytes)
    nodes = config.slurm.nodes.max
    rate = FailureRate(config.resilience.mttf, nodes)
    interval = interval_of(save, rate.mttf_s)
    return (
        f"{first}; then about every {duration(interval.seconds)}, if a save takes "
        f"{duration(save.save_s)} and costs training {duration(save.cost_s)}, with a failure of "
        f"{counted(nodes, 'node')} in {duration(rate.mttf_s)} "
        f"({_REASONS[interval.bound]})"
    )


_REASONS = {
    "formula": "sqrt(2 x cost x MTTF)",
    "risk": "sooner than sqrt(2 x cost x MTTF): at most 30 minutes of work at risk",
    "cost": "later than sqrt(2 x cost x MTTF): saves neither overlap nor take over 10 % of time",
}


def assumed_cost(config: RunConfig, checkpoint_bytes: int) -> SaveCost:
    """A save nobody has measured: written at ``SLOW_BYTES_PER_S`` by each node.

    Training waits for all of it, or, with ``async_save``, for a copy by each rank.
    """
    written_s = checkpoint_bytes / (config.slurm.nodes.max * SLOW_BYTES_PER_S)
    copied_s = checkpoint_bytes / (config.world_size * COPY_BYTES_PER_S)
    if not config.checkpoint.async_save:
        return SaveCost(written_s, written_s)
    return SaveCost(copied_s, copied_s + written_s)
