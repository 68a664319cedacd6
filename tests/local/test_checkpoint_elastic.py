"""A checkpoint loads at any world size and sharding, exactly."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from submitrain.train.checkpoint.manifest import TrainState
from tests.checkpoint_models import (
    adamw,
    checkpointer,
    differences,
    dump,
    llama,
    shard,
    train_steps,
    whole_state,
)
from tests.checkpoint_ranks import Rank, run_ranks

pytestmark = pytest.mark.ranks


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def plain_sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=0.1)


def adagrad(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adagrad(model.parameters(), lr=0.1)


def plain_llama() -> nn.Module:
    return llama()


def tied_llama() -> nn.Module:
    return llama(tied=True)


def half_frozen_llama() -> nn.Module:
    model = llama()
    model.get_input_embeddings().weight.requires_grad_(False)
    return model


def lora_llama() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(3)
    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers an old way
        return get_peft_model(llama(), config)


Build = tuple[Callable[[], nn.Module], Callable[[nn.Module], torch.optim.Optimizer]]


def hop(
    rank: Rank, build: Build, compare: Path | None, write: Path, options: dict[str, Any]
) -> list[str] | None:
    """Load what there is, compare it with ``compare``, train on, save, describe in ``write``."""
    model = shard(build[0](), rank.world_size, replicas=options.get("replicas", 1))
    optimizer = build[1](model)
    saver = checkpointer(rank, model_save_format=options.get("format", "safetensors"))
    loaded = saver.load_latest(model, optimizer)
    found = None
    if compare is not None:
        assert loaded is not None
        found = differences(whole_state(model, optimizer), torch.load(compare))
    train_steps(model, optimizer, options.get("steps", 2))
    saver.save(model, optimizer, TrainState(step=loaded.step + 1 if loaded else 1), wait=True)
    dump(rank, model, optimizer, write)
    return found


@pytest.mark.parametrize("model_format", ["safetensors", "torch_save"])
def test_adamw_goes_through_4_2_3_8_1_ranks_exactly(tmp_path: Path, model_format: str) -> None:
    compare = None
    for world_size in (4, 2, 3, 8, 1):
        write = tmp_path / f"{world_size}.pt"
        options = {"format": model_format}
        found = run_ranks(
            world_size, hop, tmp_path / "run", (plain_llama, adamw), compare, write, options
        )
        assert found == [None if compare is None else []] * world_size
        compare = write


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        (tied_llama, adamw),
        (half_frozen_llama, adamw),
        (lora_llama, adamw),
        (plain_llama, sgd),
        (plain_llama, plain_sgd),
        (plain_llama, adagrad),
    ],
    ids=lambda part: part.__name__,
)
def test_every_kind_of_state_comes_back_at_another_world_size(
    tmp_path: Path, model: Any, optimizer: Any
) -> None:
    build, root = (model, optimizer), tmp_path / "run"
    run_ranks(2, hop, root, build, None, tmp_path / "2.pt", {})
    assert run_ranks(3, hop, root, build, tmp_path / "2.pt", tmp_path / "3.pt", {}) == [[]] * 3


def save_changed_group(rank: Rank) -> None:
    model = shard(llama(), rank.world_size)
    optimizer = adamw(model)
    saver = checkpointer(rank)
    saver.load_latest(model, optimizer)
    train_steps(model, optimizer)
    optimizer.param_groups[0]["lr"] = 0.123
    saver.save(model, optimizer, TrainState(step=1), wait=True)


def load_with_other_configuration(rank: Rank) -> tuple[float, float, float]:
    model = shard(llama(), rank.world_size)
    optimizer = adamw(model, lr=0.5)
    optimizer.param_groups[0]["weight_decay"] = 0.7
    checkpointer(rank).load_latest(model, optimizer)
    first, second = optimizer.param_groups
    return first["lr"], first["weight_decay"], second["lr"]


def test_what_training_changed_in_a_group_comes_back_and_the_rest_is_configuration(
    tmp_path: Path,
) -> None:
    run_ranks(2, save_changed_group, tmp_path)
    assert run_ranks(1, load_with_other_configuration, tmp_path) == [(0.123, 0.7, 0.5)]


def test_an_optimizer_without_state_comes_back_without_state(tmp_path: Path) -> None:
    build, root, path = (plain_llama, adamw), tmp_path / "run", tmp_path / "2.pt"
    run_ranks(2, hop, root, build, None, path, {"steps": 0})
    assert run_ranks(1, hop, root, build, path, tmp_path / "1.pt", {}) == [[]]


def test_sharded_replicas_and_plain_sharding_exchange_checkpoints(tmp_path: Path) -> None:
    build, root = (plain_llama, adamw), tmp_path / "run"
    run_ranks(4, hop, root, build, None, tmp_path / "4.pt", {"replicas": 2})
    found = run_ranks(2, hop, root, build, tmp_path / "4.pt", tmp_path / "2.pt", {})
    assert found == [[]] * 2
    back = {"replicas": 2}
    assert run_ranks(4, hop, root, build, tmp_path / "2.pt", tmp_path / "4b.pt", back) == [[]] * 4
