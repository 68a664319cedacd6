"""Optimizer, learning rate and clipping; the rate is a pure function of the step."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from submitrain.config import RunConfig
from submitrain.config.sections import OptimizerConfig
from submitrain.errors import ConfigError
from submitrain.imports import load_component


@dataclass(frozen=True)
class LearningRate:
    """Linear warm-up, then a decay to ``minimum`` at ``decay_steps``; nothing has to be saved."""

    peak: float
    minimum: float
    warmup_steps: int
    decay_steps: int
    style: str
    """constant, linear or cosine."""

    @classmethod
    def of(cls, config: RunConfig, total_steps: int) -> LearningRate:
        """The schedule of a run of ``total_steps``."""
        scheduler = config.lr_scheduler
        return cls(
            peak=config.optimizer.lr,
            minimum=scheduler.min_lr,
            warmup_steps=config.warmup_steps,
            decay_steps=scheduler.lr_decay_steps or total_steps,
            style=scheduler.lr_decay_style,
        )

    def at(self, step: int) -> float:
        """Rate of the optimizer step after ``step`` finished ones; above 0 from the first on."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.style == "constant":
            return self.peak
        span = max(1, self.decay_steps - self.warmup_steps)
        done = min(1.0, (step - self.warmup_steps) / span)
        left = 1.0 - done if self.style == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.minimum + (self.peak - self.minimum) * left

    def set(self, optimizer: Optimizer, step: int) -> float:
        """Give every parameter group the rate for ``step``; returns it."""
        rate = self.at(step)
        for group in optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)
            else:
                group["lr"] = rate
        return rate


def build_optimizer(model: nn.Module, settings: OptimizerConfig) -> Optimizer:
    """The configured optimizer over what is trainable; norms and biases are not decayed.

    Raises:
        ConfigError: no such optimizer, or it does not take the arguments.
    """
    kind = load_component(settings.target, "optimizer._target_")
    # YAML has lists where optimizers want tuples (``betas``).
    extra = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.extra.items()}
    arguments: dict[str, Any] = {"lr": settings.lr, **extra}
    accepted = inspect.signature(kind).parameters
    if "fused" in accepted and "foreach" not in arguments:
        arguments.setdefault("fused", True)
    if settings.weight_decay is not None:
        arguments["weight_decay"] = settings.weight_decay
    takes_all = any(p.kind is p.VAR_KEYWORD for p in accepted.values())
    if unknown := [name for name in arguments if name not in accepted and not takes_all]:
        raise ConfigError(
            f"optimizer.{unknown[0]}: {settings.target} takes no such argument; allowed: "
            f"{', '.join(name for name in accepted if name not in {'self', 'params'})}"
        )
    try:
        optimizer = kind(parameter_groups(model), **arguments)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"optimizer: {settings.target}: {error}") from error
    if not isinstance(optimizer, Optimizer):
        raise ConfigError(
            f"optimizer._target_: {settings.target} is no torch.optim.Optimizer; "
            "write for example torch.optim.AdamW"
        )
    return optimizer


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Two groups: matrices and embeddings with weight decay, vectors without."""
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in trainable if p.ndim >= 2]},
        {"params": [p for p in trainable if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def local_shards(tensors: Iterable[Tensor]) -> list[Tensor]:
    """This rank's parts of sharded tensors."""
    return [t.to_local() if isinstance(t, DTensor) else t for t in tensors]


def sum_of_squares(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Squared 2-norm of all ``tensors`` together, as a float64 scalar."""
    if not tensors:
        return torch.zeros((), dtype=torch.float64, device=device)
    norms = torch._foreach_norm(tensors)
    return torch.stack(norms).double().square().sum()


def scale(tensors: list[Tensor], *, norm: float, max_norm: float | None) -> None:
    """Clip: shrink ``tensors`` so that their global ``norm`` is at most ``max_norm``."""
    if tensors and max_norm is not None and norm > max_norm:
        torch._foreach_mul_(tensors, max_norm / norm)
