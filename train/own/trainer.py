"""A Hugging Face ``Trainer`` that keeps the contract: it stops when asked, and saves safely.

    trainer = Trainer(..., callbacks=[RunCallback(ctx)])
    found = ctx.latest_checkpoint()
    trainer.train(resume_from_checkpoint=str(found.folder) if found else None)

What Trainer saves in its ``output_dir`` is moved into the run's checkpoints, hashed and published;
``checkpoint.keep_last_n_checkpoints`` decides how many stay. Needs transformers and accelerate.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from train.errors import ConfigError
from train.own.context import RunContext

_OURS = {"learning_rate": "lr"}
"""Trainer's names of what has another name in our events."""
_NOT_OF_A_STEP = frozenset({"loss", "eval_loss", "train_loss", "step"})


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Tells Trainer to stop, and the run what Trainer does."""

    def __init__(self, ctx: RunContext) -> None:
        self._ctx = ctx

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Announce the number of steps.

        Raises:
            ConfigError: a setting of Trainer's that loses checkpoints here.
        """
        if args.load_best_model_at_end or args.save_total_limit is not None:
            raise ConfigError(
                "TrainingArguments: expected load_best_model_at_end false and save_total_limit "
                "none, got another value: checkpoints are moved into the run folder, where "
                "checkpoint.keep_last_n_checkpoints counts"
            )
        self._ctx.announce(total_steps=state.max_steps)
        self._look(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop, on all ranks at the same step, where that was asked for."""
        self._look(state, control)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **_: Any,
    ) -> None:
        """Record losses and what else is a number."""
        values = logs or {}
        if "loss" in values:
            more = {
                _OURS.get(name, name): value
                for name, value in values.items()
                if isinstance(value, int | float) and name not in _NOT_OF_A_STEP
            }
            self._ctx.log(step=state.global_step, loss=values["loss"], **more)
        if "eval_loss" in values:
            self._ctx.log_validation(step=state.global_step, loss=values["eval_loss"])

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Publish what Trainer has just saved."""
        folder = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        self._ctx.publish_checkpoint(state.global_step, folder)

    def _look(self, state: TrainerState, control: TrainerControl) -> None:
        finished: int = state.global_step
        if self._ctx.should_stop(finished):
            control.should_save = finished > 0
            control.should_training_stop = True
