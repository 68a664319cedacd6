"""How the user's configuration becomes a run for timing: overrides on top of theirs. Pure.

    step 1 .. warmup | .. warmup + timed | save | SAVED_STEPS more, with the save beside them | save

So saves cost no timed step, and what one costs is measured apart.
"""

from __future__ import annotations

from dataclasses import dataclass

from monitor.scaling.curve import Mode
from train.config import RunConfig

SAVED_STEPS = 10
"""Steps after the timed ones, beside a save in the background."""
FREE = "rm -rf checkpoints/step-*"
"""Hook of a timing run that finished, in its folder: nobody goes on from it."""


@dataclass(frozen=True)
class Shape:
    """The length of a timing run in optimizer steps."""

    warmup: int
    timed: int

    @property
    def measured(self) -> int:
        """The last step that is timed."""
        return self.warmup + self.timed

    def total(self, config: RunConfig) -> int:
        """All steps of a run; none after the timed ones where it never saves."""
        return self.measured + (SAVED_STEPS if config.checkpoint.enabled else 0)


def timing_overrides(config: RunConfig, nodes: int, mode: Mode, shape: Shape) -> tuple[str, ...]:
    """What a point at ``nodes`` changes in ``config``, the user's with the grid's values."""
    total = shape.total(config)
    changes: dict[str, object] = {
        "slurm.nodes": nodes,
        "slurm.spare_nodes": 0,
        **_batch(config, mode),
        "step_scheduler.max_steps": total,
        "step_scheduler.num_epochs": "none",
        "step_scheduler.ckpt_every_steps": shape.measured if config.checkpoint.enabled else "none",
        "step_scheduler.val_every_steps": "none",
        "validation_dataset": "none",
        "validation_dataloader": "none",
        "sample": "none",
        "logging.log_every_steps": 1,
        "on_success": FREE if config.checkpoint.enabled else "none",
        "on_failure": "none",
    }
    if config.checkpoint.enabled:
        changes["checkpoint.save_consolidated"] = "never"
        changes["checkpoint.keep_last_n_checkpoints"] = 1
    if config.distributed.dp_size is not None:
        changes["distributed.dp_size"] = "none"
    if config.wandb is not None:
        changes["wandb.enabled"] = "false"
    if config.warmup_steps > total:
        key = "step_scheduler" if config.step_scheduler.warmup_steps else "lr_scheduler.lr"
        changes[f"{key}{'.' if key == 'step_scheduler' else '_'}warmup_steps"] = total
    return tuple(f"{key}={value}" for key, value in changes.items())


def _batch(config: RunConfig, mode: Mode) -> dict[str, object]:
    """Strong: the global batch stays, accumulation follows. Weak: what one rank does stays."""
    arithmetic = config.batch()
    if mode == "strong":
        sizes: dict[str, object] = {"global": arithmetic.global_size, "accumulation": "none"}
    else:
        sizes = {"global": "none", "accumulation": arithmetic.accumulation}
    return {
        "step_scheduler.global_batch_size": sizes["global"],
        "step_scheduler.grad_acc_steps": sizes["accumulation"],
    }


def global_batch(config: RunConfig, nodes: int, mode: Mode) -> int:
    """Sequences of a step at ``nodes``."""
    arithmetic = config.batch()
    if mode == "strong":
        return arithmetic.global_size
    world = nodes * config.slurm.ntasks_per_node
    return arithmetic.local_size * arithmetic.accumulation * world


def indivisible(config: RunConfig, nodes: int, mode: Mode) -> str | None:
    """Why the batch does not come out even at ``nodes``, with the arithmetic; None when it does."""
    arithmetic = config.batch()
    if mode == "weak":
        return None
    per_node = arithmetic.local_size * config.slurm.ntasks_per_node
    together, total = per_node * nodes, arithmetic.global_size
    if total % together == 0:
        return None
    fitting = [n for n in range(1, 4 * nodes + 1) if total % (per_node * n) == 0]
    choice = (
        f"choose nodes from {', '.join(map(str, fitting))}"
        if fitting
        else (f"make it a multiple of {per_node} (step_scheduler.global_batch_size)")
    )
    return (
        f"--nodes {nodes}: strong scaling keeps the global batch of {total} sequences, and local "
        f"batch {arithmetic.local_size} x {nodes * config.slurm.ntasks_per_node} ranks = {together}"
        f" does not divide it ({total} / {together} = {total / together:.2f} micro-batches); "
        f"{choice}, or write --mode weak"
    )


def set_by_timing(overrides: tuple[str, ...]) -> frozenset[str]:
    """Keys that a timing run sets itself, so that a grid over them would have no effect."""
    return frozenset(text.partition("=")[0] for text in overrides) - {
        "step_scheduler.global_batch_size",
        "step_scheduler.grad_acc_steps",
    }
