"""Spreading a model over ranks: activation checkpointing, then compile, then FSDP2, block by block.

And faster forms of a model's own parts: torch's fused RMS norm, Liger's kernels if installed. Names
of parameters stay those of the Hugging Face model: nothing here wraps a module in another.
"""

from __future__ import annotations

import types
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard

from submitrain.config import RunConfig
from submitrain.errors import ConfigError
from submitrain.train.distributed.groups import World

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


def use_liger(model_type: str, device: torch.device) -> None:
    """Replace parts of ``model_type`` in transformers by Liger's; call before the model is made.

    The loss is not replaced: it is computed here, over label tokens only.

    Raises:
        ConfigError: Liger is not installed, needs a GPU, or does not know the model.
    """
    key = "model.use_liger_kernel"
    if not find_spec("liger_kernel"):
        raise ConfigError(
            f"{key}: the package liger-kernel is not installed; "
            "pip install 'submitrain[liger]', or set it to false"
        )
    if device.type != "cuda":
        raise ConfigError(f"{key}: Liger's kernels need a GPU; set it to false on CPUs")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if apply is None:
        raise ConfigError(
            f"{key}: Liger does not know {model_type}; allowed: "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}; or set it to false"
        )
    apply(cross_entropy=False, fused_linear_cross_entropy=False)


def fuse_norms(model: nn.Module) -> int:
    """Let modules that compute a plain RMS norm use ``F.rms_norm``; returns how many do.

    Decided by comparing outputs for each class, not by name: Gemma's adds 1 to the weight.
    """
    fused = 0
    plain: dict[type, bool] = {}
    for module in model.modules():
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if type(module).__name__.endswith("RMSNorm") and isinstance(eps, float):
            kind = type(module)
            if kind not in plain:
                plain[kind] = _is_plain(kind)
            if not plain[kind]:
                continue
            module.forward = types.MethodType(_fused_forward, module)
            module._norm_eps = eps  # type: ignore[assignment]
            fused += 1
    return fused


def _fused_forward(self: nn.Module, hidden: Tensor) -> Tensor:
    weight = self.weight
    assert isinstance(weight, Tensor)
    return F.rms_norm(hidden, weight.shape, weight, self._norm_eps)  # type: ignore[arg-type]


def _is_plain(norm: type[nn.Module]) -> bool:
    """Whether ``norm`` gives what ``F.rms_norm`` gives, tried on random numbers."""
    if norm.__module__.startswith("liger_kernel"):
        return False
    try:
        probe = norm(16, eps=1e-5).float()
        weight = probe.weight
        assert isinstance(weight, Tensor)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            weight.copy_(torch.randn(16, generator=generator))
            hidden = torch.randn(4, 16, generator=generator)
            expected = F.rms_norm(hidden, (16,), weight, 1e-5)
            return bool(torch.allclose(probe(hidden), expected, rtol=1e-5, atol=1e-6))
    except (TypeError, AttributeError, AssertionError, RuntimeError):
        return False
