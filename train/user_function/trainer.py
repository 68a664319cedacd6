"""Trainers of others as the training function: a Hugging Face ``Trainer``, NeMo AutoModel's recipe.

Both stop when asked, on all ranks at the same step; what they save is moved into the run's
checkpoints, hashed and published; ``checkpoint.keep_last_n_checkpoints`` decides how many stay.
Needs transformers and accelerate.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from submitrain.errors import ConfigError
from submitrain.train.user_function.context import RunContext

_RECIPES = {
    "TrainFinetuneRecipeForNextTokenPrediction": "nemo_automodel.recipes.llm.train_ft",
}


def train(ctx: RunContext, config: str) -> None:
    """Run the AutoModel recipe that ``config`` names to its end, or to an agreed stop.

        entry: {_target_: submitrain.train.user_function.trainer.train, config: their.yaml}

    Its stop signal is replaced by the agreed one, it goes on from the newest whole checkpoint, and
    its steps are recorded. The rest is its own.

    Raises:
        ConfigError: the package is missing, or the recipe is not one that is known here.
    """
    ctx.init_process_group()
    settings = read_settings(config)
    found = ctx.latest_checkpoint()
    scratch = ctx.run_folder / "automodel"
    settings.set_by_dotted("checkpoint.enabled", True)
    settings.set_by_dotted("checkpoint.checkpoint_dir", str(scratch))
    settings.set_by_dotted("checkpoint.is_async", False)
    settings.set_by_dotted("checkpoint.restore_from", str(found.folder) if found else None)
    settings.set_by_dotted("step_scheduler.preemption_signal", None)
    recipe = _recipe_of(settings)(settings)
    recipe.setup()
    scheduler = recipe.step_scheduler
    ctx.announce(total_steps=scheduler.max_steps)
    # AutoModel asks for a signal on all ranks, once in every step.
    agreed_stop = SimpleNamespace(signals_received=lambda: [ctx.should_stop(scheduler.step)])
    scheduler.sig_handler = agreed_stop
    log, save = recipe.log_train_metrics, recipe.save_checkpoint

    def log_train_metrics(data: Any) -> None:
        log(data)
        names = {"loss": "loss", "lr": "lr", "grad_norm": "grad_norm", "tps": "tokens_per_s"}
        known = {ours: data.metrics[name] for name, ours in names.items() if name in data.metrics}
        ctx.log(step=data.step + 1, **known)

    def save_checkpoint(epoch: int, step: int, *rest: Any, **named: Any) -> None:
        save(epoch, step, *rest, **named)
        ctx.publish_checkpoint(step + 1, scratch / f"epoch_{epoch}_step_{step}")

    recipe.log_train_metrics = log_train_metrics
    recipe.save_checkpoint = save_checkpoint
    recipe.run_train_validation_loop()


def read_settings(config: str) -> Any:
    """Their configuration, as they read it.

    Raises:
        ConfigError: the package is missing.
    """
    try:
        loader = import_module("nemo_automodel.components.config.loader")
    except ImportError as error:
        raise ConfigError(
            f"entry: {__name__}.train needs the package nemo-automodel, which does not import "
            f"here: {error}; pip install nemo-automodel"
        ) from error
    return loader.load_yaml_config(config)


def _recipe_of(settings: Any) -> Any:
    name = str(settings.get("recipe", "")).rpartition(".")[2]
    if name not in _RECIPES:
        raise ConfigError(
            f"entry.config: expected recipe one of {', '.join(_RECIPES)}, got {name or 'none'!r}"
        )
    return getattr(import_module(_RECIPES[name]), name)


_OURS = {"learning_rate": "lr"}
"""Trainer's names of what has another name in our events."""
_NOT_OF_A_STEP = frozenset({"loss", "eval_loss", "train_loss", "step"})


class RunCallback(TrainerCallback):  # type: ignore[misc]
    """Lets a Hugging Face ``Trainer`` keep the contract of ``RunContext``.

    trainer = Trainer(..., callbacks=[RunCallback(ctx)])
    found = ctx.latest_checkpoint()
    trainer.train(resume_from_checkpoint=str(found.folder) if found else None)
    """

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
        self._stop_if_asked(state, control)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Save and stop, on all ranks at the same step, where that was asked for."""
        self._stop_if_asked(state, control)

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

    def _stop_if_asked(self, state: TrainerState, control: TrainerControl) -> None:
        finished: int = state.global_step
        if self._ctx.should_stop(finished):
            control.should_save = finished > 0
            control.should_training_stop = True
