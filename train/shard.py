"""Spreading a model over ranks: activation checkpointing, then compile, then FSDP2, block by block.

Names of parameters stay those of the Hugging Face model: nothing here wraps a module in another.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from train.config import RunConfig
from train.dist import World
from train.errors import ConfigError

LARGE_MODEL = 2_000_000_000
"""Parameters from which on memory comes before speed, where the user has not chosen."""


@dataclass(frozen=True)
class ShardPolicy:
    """When full parameters are freed and when gradients are reduced."""

    reshard_after_forward: bool
    defer_grad_sync: bool
    compute_dtype: torch.dtype


def shard_policy(
    config: RunConfig, parameters: int, accumulation: int, device: torch.device
) -> ShardPolicy:
    """What the configuration says, with its ``none`` decided for this model and device."""
    settings = config.distributed
    small = parameters < LARGE_MODEL
    reshard = settings.reshard_after_forward
    defer = settings.defer_grad_sync
    return ShardPolicy(
        reshard_after_forward=accumulation == 1 or not small if reshard is None else reshard,
        defer_grad_sync=(small or device.type == "cpu") if defer is None else defer,
        compute_dtype=getattr(torch, config.model.torch_dtype),
    )


def shard(model: nn.Module, config: RunConfig, world: World, policy: ShardPolicy) -> None:
    """Prepare ``model`` in place; its parameters may still be on the meta device.

    Raises:
        ConfigError: an optimization that this model does not support.
    """
    blocks = transformer_blocks(model)
    if config.training_optimizations.activation_checkpointing:
        checkpoint_activations(model)
    if config.use_compile:
        for block in blocks:
            block.compile(
                mode=config.compile.mode,
                fullgraph=config.compile.fullgraph,
                dynamic=config.compile.dynamic,
            )
    _fully_shard(model, blocks, world, policy)
    for unit in sharded_units(model):
        # The loss is divided by the step's global token count already: gradients are summed. gloo
        # has no PREMUL_SUM, which a factor alone would ask for.
        unit.set_force_sum_reduction_for_comms(True)
        unit.set_gradient_divide_factor(1.0)


def _fully_shard(
    model: nn.Module, blocks: list[nn.Module], world: World, policy: ShardPolicy
) -> None:
    bf16 = policy.compute_dtype != torch.float32
    mixed = MixedPrecisionPolicy(
        param_dtype=policy.compute_dtype if bf16 else None, reduce_dtype=torch.float32
    )

    def unit(modules: nn.Module | list[nn.Module], *, reshard: bool) -> None:
        fully_shard(modules, mesh=world.mesh, mp_policy=mixed, reshard_after_forward=reshard)

    for block in blocks:
        unit(block, reshard=policy.reshard_after_forward)
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()  # type: ignore[operator]
    if embeddings is not None and head is not None and embeddings.weight is not head.weight:
        unit(embeddings, reshard=policy.reshard_after_forward)
        # Backward needs these first: freeing them after forward would gather them again at once.
        unit([*_final_norm(model), head], reshard=False)
    unit(model, reshard=False)


def _final_norm(model: nn.Module) -> list[nn.Module]:
    """The norm between the last block and the head, where it can be told by its name."""
    base = getattr(model, getattr(model, "base_model_prefix", ""), None)
    names = ("norm", "ln_f", "final_layer_norm", "final_layernorm")
    found = [getattr(base, name) for name in names if hasattr(base, name)]
    return [module for module in found if isinstance(module, nn.Module)][:1]


def transformer_blocks(model: nn.Module) -> list[nn.Module]:
    """The repeated blocks, in order: the longest list of modules in the model.

    Raises:
        ConfigError: the model has no such list, so that sharding it would gather it whole.
    """
    lists = [list(m) for m in model.modules() if isinstance(m, nn.ModuleList) and len(m)]
    if not lists:
        raise ConfigError(
            f"model: {type(model).__name__} has no nn.ModuleList of blocks to shard; "
            "use a Hugging Face causal LM"
        )
    return max(lists, key=lambda blocks: sum(p.numel() for b in blocks for p in b.parameters()))


def checkpoint_activations(model: nn.Module) -> None:
    """Recompute each block in backward, by the model's own means (names do not change).

    Raises:
        ConfigError: the model does not support it.
    """
    if not getattr(model, "supports_gradient_checkpointing", False):
        raise ConfigError(
            f"training_optimizations.activation_checkpointing: {type(model).__name__} does not "
            "support it; set it to false"
        )
    # transformers 5.23 renames it and deprecates the old name.
    new = getattr(model, "activation_checkpointing_enable", None)
    enable: Any = new or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def sharded_units(model: nn.Module) -> Iterator[FSDPModule]:
    """Every module that ``fully_shard`` was applied to, the root among them."""
    return (module for module in model.modules() if isinstance(module, FSDPModule))


def free_full_parameters(model: nn.Module) -> None:
    """Keep only this rank's shards; needed after a forward pass without backward."""
    for unit in sharded_units(model):
        unit.reshard()
