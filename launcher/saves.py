"""What a plan says of checkpoints: how often, and on which assumptions. Pure."""

from __future__ import annotations

from launcher.deadlines import SLOW_BYTES_PER_S
from train.cadence import FIRST_S, FIRST_STEPS, FailureRate, SaveCost, interval_of
from train.config import RunConfig

COPY_BYTES_PER_S = 1e9
"""Assumed of each rank's copy out of the way of training, before anybody has measured it."""
_DAY_S = 86400.0


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
        f"{first}; then about every {_minutes(interval.seconds)}, if a save takes "
        f"{_seconds(save.save_s)} and costs training {_seconds(save.cost_s)}, with a failure of "
        f"{nodes} node{'s' if nodes > 1 else ''} in {_days(rate.mttf_s)} "
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


def _days(seconds: float) -> str:
    return f"{seconds / _DAY_S:.1f} days" if seconds >= _DAY_S else f"{seconds / 3600:.1f} hours"


def _seconds(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{seconds:.0f} s"
