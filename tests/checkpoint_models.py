"""Small models and optimizers for checkpoint tests, and their whole tensors for comparison."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from submitrain.config.sections import CheckpointConfig
from submitrain.train.checkpoint.checkpointer import Checkpointer
from submitrain.train.checkpoint.hf_weights import Pretrained
from tests.checkpoint_ranks import Rank

VOCABULARY = 91
"""Divides by none of the world sizes, so that shards are uneven."""


def llama(*, tied: bool = False, seed: int = 0, **changes: Any) -> nn.Module:
    """A Llama with odd sizes; ``seed`` decides its weights."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    values = {
        "vocab_size": VOCABULARY,
        "hidden_size": 24,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 64,
        "tie_word_embeddings": tied,
    }
    return LlamaForCausalLM(LlamaConfig(**{**values, **changes}))


def shard(model: nn.Module, world_size: int, *, replicas: int = 1) -> nn.Module:
    """FSDP2 over all ranks, or HSDP with ``replicas`` groups; the root takes what is left."""
    if replicas == 1:
        mesh = init_device_mesh("cpu", (world_size,))
    else:
        names = ("replicate", "shard")
        mesh = init_device_mesh("cpu", (replicas, world_size // replicas), mesh_dim_names=names)
    for layer in model.get_decoder().layers:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


def train_steps(model: nn.Module, optimizer: torch.optim.Optimizer, count: int = 2) -> None:
    """Real steps on fixed tokens."""
    tokens = torch.arange(32).reshape(2, 16) % VOCABULARY
    for _ in range(count):
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def adamw(model: nn.Module, lr: float = 1e-2) -> torch.optim.Optimizer:
    """AdamW with two groups, as the recipe has them."""
    trained = [p for p in model.parameters() if p.requires_grad]
    return torch.optim.AdamW(
        [
            {"params": [p for p in trained if p.ndim > 1], "weight_decay": 0.1},
            {"params": [p for p in trained if p.ndim <= 1], "weight_decay": 0.0},
        ],
        lr=lr,
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The full tensor on every rank."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def whole_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """Every parameter and optimizer entry as a full tensor, by name."""
    state = {}
    for name, parameter in model.named_parameters():
        state[name] = whole(parameter.detach())
        for key, value in optimizer.state.get(parameter, {}).items():
            state[f"{name}/{key}"] = whole(value) if torch.is_tensor(value) else torch.tensor(value)
    return {name: tensor.contiguous() for name, tensor in state.items()}


def checkpointer(rank: Rank, pretrained: Pretrained | None = None, **settings: Any) -> Checkpointer:
    """Checkpointer of a rank with the run folder's own checkpoints."""
    return Checkpointer(
        folder=rank.context.run_dir.checkpoints,
        context=rank.context,
        settings=CheckpointConfig(**settings),
        config_hash="c0ffee",
        group=rank.group,
        pretrained=pretrained,
    )


def differences(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> list[str]:
    """Names whose tensors are not the same bit for bit."""
    names = sorted(left.keys() ^ right.keys())
    return names + [
        name
        for name in left.keys() & right.keys()
        if left[name].dtype != right[name].dtype or not torch.equal(left[name], right[name])
    ]


def dump(rank: Rank, model: nn.Module, optimizer: torch.optim.Optimizer, path: Path) -> None:
    """Write the whole state to a file for later comparison; collective."""
    state = whole_state(model, optimizer)
    if rank.index == 0:
        torch.save(state, path)
