"""What a drill will do, worked out before anything is started.

The user's configuration becomes a short one by overrides on top of theirs. What is trained stays
what it was, apart from its length; with ``shrink`` the model gets smaller.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.errors import UserError
from submitrain.launcher.checks.schedulability import permit
from submitrain.launcher.drill.scenarios import FEWEST_STEPS, Place, Scenario, Steps, choose
from submitrain.launcher.plan.prepare import prepare
from submitrain.train.faults import Fault, FaultKind, Moment

LONGEST_JOB_S = 3600
"""Most that a drill's jobs ask for as time limit: short jobs start sooner."""
VALIDATION_SAMPLES = 64
SMALL_LAYERS = 2
SMALL_WIDTH = 256
KEPT_CHECKPOINTS = 3
LEAD_SHARE = 0.6
"""Share of the undisturbed run's steps before the time limit is reached, in that scenario."""
SAVE_ROOM_S = 600.0
"""Seconds between the stop and the limit: a lead too short for the checkpoint is refused."""
SLOWEST_ACTION_S = 5.0
"""Seconds that a stop from outside may take to reach the ranks (scancel, a polled file)."""
PACE = "pace"
"""Id of the fault that only makes steps longer."""


def settings_of(
    config: RunConfig, *, steps: int, shrink: bool
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What a drill changes in a configuration: overrides, and what the user should know of them.

    Raises:
        UserError: fewer steps than a drill needs, or a training function of the user's own.
    """
    if config.entry is not None:
        raise UserError(
            "entry: a drill sets the length and the saves of the built-in recipe, which your "
            f"{config.entry.target} decides itself; see docs/own-training-code.md for how to "
            "disturb a run of your own"
        )
    if steps < FEWEST_STEPS:
        raise UserError(
            f"--steps: expected at least {FEWEST_STEPS} (four saves and a fault between them), "
            f"got {steps}"
        )
    shape = Steps.of(steps)
    changes: dict[str, object] = {
        "step_scheduler.max_steps": steps,
        "step_scheduler.num_epochs": "none",
        "step_scheduler.ckpt_every_steps": shape.save_every,
        "checkpoint.enabled": "true",
        "checkpoint.keep_last_n_checkpoints": KEPT_CHECKPOINTS,
        "checkpoint.save_consolidated": "never",
        "sample": "none",
        "logging.log_every_steps": 1,
        "logging.log_sample_ids": "true",
        "slurm.time": f"{min(config.slurm.time, LONGEST_JOB_S)}s",
    }
    if (data := config.validation_dataset) is not None:
        limit = min(data.num_samples_limit or VALIDATION_SAMPLES, VALIDATION_SAMPLES)
        changes["step_scheduler.val_every_steps"] = steps // 2
        changes["validation_dataset.num_samples_limit"] = limit
    if config.warmup_steps > shape.save_every:
        # A warm-up that would outlast the drill is cut, under the key by which it was given.
        given = config.step_scheduler.warmup_steps
        key = "step_scheduler.warmup_steps" if given else "lr_scheduler.lr_warmup_steps"
        changes[key] = shape.save_every
    for tracker in ("wandb", "tensorboard", "trackio"):
        if getattr(config, tracker) is not None:
            changes[f"{tracker}.enabled"] = "false"
    warnings: tuple[str, ...] = ()
    if shrink:
        smaller, warnings = shrunk(config.model.config)
        changes |= {f"model.config.{key}": value for key, value in smaller.items()}
    return tuple(f"{key}={value}" for key, value in changes.items()), warnings


def shrunk(model: Mapping[str, Any] | None) -> tuple[dict[str, int], tuple[str, ...]]:
    """A smaller shape of an inline model config: two layers, a width of about 256.

    The size of an attention head and the ratios of the widths stay, so that it remains a valid
    model of its family. Returns the changed keys, and a warning where nothing could be changed.
    """
    if model is None:
        return {}, (
            "--shrink: the model is not given as an inline model.config, so its size stays; "
            "give the sizes there, or leave the option out",
        )
    sizes = {key: value if isinstance(value, int) else 0 for key, value in model.items()}
    smaller = {
        key: SMALL_LAYERS
        for key in ("num_hidden_layers", "n_layer")
        if sizes.get(key, 0) > SMALL_LAYERS and "layer_types" not in model
    }
    smaller |= _narrower(sizes)
    if smaller:
        return smaller, ()
    return {}, ("--shrink: the model is small already, or of a family whose keys are not known",)


def _narrower(sizes: Mapping[str, int]) -> dict[str, int]:
    """Fewer heads of the same size; the other widths follow in proportion."""
    hidden, heads = sizes.get("hidden_size", 0), sizes.get("num_attention_heads", 0)
    if hidden <= SMALL_WIDTH or not heads or hidden % heads:
        return {}
    per_group = max(1, heads // (sizes.get("num_key_value_heads") or heads))
    head_size = hidden // heads
    fewer = max(per_group, SMALL_WIDTH // head_size // per_group * per_group)
    if fewer >= heads:
        return {}
    changed = {"num_attention_heads": fewer, "hidden_size": fewer * head_size}
    if "num_key_value_heads" in sizes:
        changed["num_key_value_heads"] = fewer // per_group
    if wide := sizes.get("intermediate_size"):
        changed["intermediate_size"] = 8 * math.ceil(wide * fewer / heads / 8)
    return changed


@dataclass(frozen=True)
class Measured:
    """What the undisturbed run took, in seconds."""

    total_s: float
    """From the launch to its end."""
    started_s: float
    """From the start of the attempt to the end of its first step."""
    steps_s: float
    """From there to the last step."""
    step_s: float
    """The median step."""


def time_limit_overrides(
    measured: Measured, *, configured_s: int, pace_s: float, steps: Steps
) -> list[str]:
    """A time limit that comes near in the middle of a run like the undisturbed one.

    The limit itself is in whole minutes, as Slurm counts; the lead before it moves the stop to
    where about ``LEAD_SHARE`` of the steps are done.
    """
    steps_s = measured.steps_s + pace_s * steps.total
    stop_after_s = max(1.0, measured.started_s + LEAD_SHARE * steps_s)
    limit_s = min(configured_s, 60 * math.ceil((stop_after_s + SAVE_ROOM_S) / 60))
    lead_s = max(1, round(limit_s - stop_after_s))
    return [
        f"slurm.time={limit_s}s",
        f"resilience.stop_lead_s={lead_s}",
        f"slurm.signal_lead_s={min(lead_s, 60)}",
    ]


def pace_of(scenario: Scenario, measured: Measured, steps: Steps) -> float:
    """Seconds by which each step is made longer, so that what comes from outside hits a step.

    The steps of a small model may all be over before a signal has arrived. Numbers do not depend
    on it.
    """
    if scenario.short_time_limit:
        wanted_s = 2 * measured.started_s
        return round(max(0.0, (wanted_s - measured.steps_s) / steps.total), 3)
    if scenario.action is not None:
        return round(max(0.0, SLOWEST_ACTION_S / steps.save_every - measured.step_s), 3)
    return 0.0


def paced(scenario: Scenario, pace_s: float, steps: Steps) -> tuple[Fault, ...]:
    """The fault that makes steps longer: all of them, or those from the scenario's step on."""
    if not pace_s:
        return ()
    begin = 1 if scenario.short_time_limit else scenario.step(steps)
    slow = Fault(
        id=PACE,
        moment=Moment.STEP,
        kind=FaultKind.SLOW,
        step=begin,
        micro_batch=0,
        times=steps.total,
        seconds=pace_s,
    )
    return (slow,)


@dataclass(frozen=True)
class DrillPlan:
    """A drill that can be held."""

    source: str
    """The user's configuration file."""
    overrides: tuple[str, ...]
    """The user's, then the drill's."""
    warnings: tuple[str, ...]
    place: Place
    steps: Steps
    scenarios: tuple[Scenario, ...]
    runs_dir: Path
    cluster_reason: str


def plan_drill(
    source: str,
    *,
    overrides: Sequence[str] = (),
    cluster: str | None = None,
    steps: int = 20,
    shrink: bool = False,
    faults: str | None = None,
) -> DrillPlan:
    """Work out a drill; nothing is started.

    Raises:
        UserError: the configuration, the faults or the number of steps are wrong.
    """
    theirs = prepare(source, overrides=overrides, cluster=cluster)
    changes, warnings = settings_of(theirs.loaded.config, steps=steps, shrink=shrink)
    together = (*overrides, *changes)
    ours = prepare(source, overrides=together, cluster=theirs.cluster.name)
    permit(ours.schedulability(), way_out="ask for what it has")
    place = Place(theirs.cluster.name, ours.loaded.config)
    return DrillPlan(
        source=source,
        overrides=together,
        warnings=warnings,
        place=place,
        steps=Steps.of(steps),
        scenarios=tuple(choose(faults, place)),
        runs_dir=theirs.runs_dir,
        cluster_reason=theirs.cluster.reason,
    )
