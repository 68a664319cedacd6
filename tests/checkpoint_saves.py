"""What ranks of several checkpoint tests do: save numbered checkpoints, and say what they find."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import nn

from submitrain.events import Kind, read_events
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.checkpointer import Checkpointer
from submitrain.train.checkpoint.manifest import TrainState, list_checkpoints, step_of
from tests.checkpoint_models import (
    adamw,
    checkpointer,
    llama,
    shard,
    whole_state,
)
from tests.checkpoint_ranks import Rank


def numbered(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Let every value in model and optimizer be ``step``: any mixture of two saves would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.full_like(parameter, step),
                "exp_avg_sq": torch.full_like(parameter, step),
            }


def build(rank: Rank, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, Checkpointer]:
    model = shard(llama(), rank.world_size)
    return model, adamw(model), checkpointer(rank, **settings)


def save_steps(rank: Rank, steps: list[int], settings: dict[str, Any]) -> list[float]:
    """Save checkpoints whose every value is their step; returns how long each blocked."""
    model, optimizer, saver = build(rank, **settings)
    blocked = []
    for step in steps:
        numbered(model, optimizer, step)
        blocked.append(saver.save(model, optimizer, TrainState(step=step), wait=False))
    saver.close()
    return blocked


def found_values(
    loaded: TrainState | None, model: nn.Module, optimizer: torch.optim.Optimizer
) -> list[Any] | None:
    """Step that was loaded and all values in model and optimizer now; None without a step."""
    if loaded is None:
        return None
    state = whole_state(model, optimizer)
    values = {value for tensor in state.values() for value in tensor.unique().tolist()}
    return [loaded.step, sorted(values)]


def load_values(rank: Rank) -> list[Any] | None:
    """What a resume finds."""
    model, optimizer, saver = build(rank)
    return found_values(saver.load_latest(model, optimizer), model, optimizer)


def events(root: Path, kind: Kind) -> list[dict[str, Any]]:
    return list(read_events(RunDir(root).events(0), kinds=frozenset({kind})))


def published_steps(root: Path) -> list[int | None]:
    return [step_of(path) for path in list_checkpoints(RunDir(root).checkpoints)]


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)
