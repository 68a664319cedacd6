"""NeMo AutoModel's own recipe as the training function, where that package is installed.

    entry: {_target_: train.own.automodel.train, config: their.yaml}

Its stop signal is replaced by the agreed one, its checkpoints are moved into ours (hashed, atomic,
pruned), it goes on from the newest whole one, and its steps are recorded. The rest is its own.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

from train.errors import ConfigError
from train.own.context import RunContext

_RECIPES = {
    "TrainFinetuneRecipeForNextTokenPrediction": "nemo_automodel.recipes.llm.train_ft",
}


def train(ctx: RunContext, config: str) -> None:
    """Run the recipe that ``config`` names to its end, or to an agreed stop.

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
    scheduler.sig_handler = _AgreedStop(ctx, scheduler)
    _record_steps(ctx, recipe)
    _publish_saves(ctx, recipe, scratch)
    recipe.run_train_validation_loop()


class _AgreedStop:
    """Answers AutoModel's question for a signal; asked by all ranks once in every step."""

    def __init__(self, ctx: RunContext, scheduler: Any) -> None:
        self._ctx, self._scheduler = ctx, scheduler

    def signals_received(self) -> list[bool]:
        """Whether to save and stop."""
        return [self._ctx.should_stop(self._scheduler.step)]


def _record_steps(ctx: RunContext, recipe: Any) -> None:
    log = recipe.log_train_metrics

    def log_train_metrics(data: Any) -> None:
        log(data)
        names = {"loss": "loss", "lr": "lr", "grad_norm": "grad_norm", "tps": "tokens_per_s"}
        known = {ours: data.metrics[name] for name, ours in names.items() if name in data.metrics}
        ctx.log(step=data.step + 1, **known)

    recipe.log_train_metrics = log_train_metrics


def _publish_saves(ctx: RunContext, recipe: Any, scratch: Path) -> None:
    save = recipe.save_checkpoint

    def save_checkpoint(epoch: int, step: int, *rest: Any, **named: Any) -> None:
        save(epoch, step, *rest, **named)
        ctx.publish_checkpoint(step + 1, scratch / f"epoch_{epoch}_step_{step}")

    recipe.save_checkpoint = save_checkpoint


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
