"""What one rank needs in memory, and what a checkpoint takes on disk: estimates, with sources.

From the model's Hugging Face config alone: exact numbers of parameters for the decoder families
listed here (tests compare with transformers), None for others. Sizes are in bytes. Sharding is that
of ``train.model.shard``: FSDP2 with float32 shards, parameters gathered in the compute dtype,
gradients reduced in float32. Imports no torch.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from submitrain.config import RunConfig


@dataclass(frozen=True)
class Machine:
    """Cores and bytes of memory."""

    cpus: int
    memory_bytes: int


def this_machine() -> Machine:
    """Cores that this process may run on, and the machine's physical memory."""
    pages = os.sysconf("SC_PHYS_PAGES")
    return Machine(len(os.sched_getaffinity(0)), pages * os.sysconf("SC_PAGE_SIZE"))


Linear = tuple[str, int, int]
"""Name, input and output size of a linear layer."""

_SHAPE = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
)
_QWEN = {
    **dict(zip(_SHAPE, (151936, 4096, 22016, 32, 32), strict=True)), "num_key_value_heads": 32,
}  # fmt: skip
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": dict(zip(_SHAPE, (32000, 4096, 11008, 32, 32), strict=True)),
    "mistral": {
        **dict(zip(_SHAPE, (32000, 4096, 14336, 32, 32), strict=True)), "num_key_value_heads": 8,
    },
    "qwen2": _QWEN,
    "qwen3": {**_QWEN, "head_dim": 128},
    "gpt2": {
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12,
    },
}  # fmt: skip
"""Values that transformers 5.x fills in where a config leaves them out."""


@dataclass(frozen=True)
class ModelSize:
    """Sizes of a decoder; counts are numbers of parameters, tied ones once."""

    parameters: int
    block_parameters: int
    num_layers: int
    hidden_size: int
    num_heads: int
    vocab_size: int
    linears: tuple[Linear, ...]
    """Linear layers of one block."""

    def adapters(self, rank: int, target_modules: str | list[str]) -> int:
        """Parameters of LoRA adapters of this rank (Hu et al. 2021, arXiv:2106.09685)."""
        chosen = [
            (size_in, size_out)
            for name, size_in, size_out in self.linears
            if target_modules == "all-linear" or name in target_modules
        ]
        return self.num_layers * sum(rank * (size_in + size_out) for size_in, size_out in chosen)


def model_size(config: Mapping[str, Any], *, vocab_size: int | None = None) -> ModelSize | None:
    """Size of the model that ``config`` describes; None for a family that is not known here.

    Args:
        vocab_size: of the tokenizer, where the config has none.
    """
    kind = config.get("model_type")
    if kind not in _DEFAULTS:
        return None
    fallback = {"vocab_size": vocab_size} if vocab_size else {}
    values = {**_DEFAULTS[kind], **fallback, **{k: v for k, v in config.items() if v is not None}}
    try:
        return _gpt2(values) if kind == "gpt2" else _llama_like(values, kind)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def _llama_like(c: Mapping[str, Any], kind: str) -> ModelSize:
    """Gated MLP, RMSNorm, grouped-query attention (transformers, ``modeling_llama.py``)."""
    vocab, hidden, inner, layers, heads = (int(c[key]) for key in _SHAPE)
    head = int(c.get("head_dim") or hidden // heads)
    kv = int(c.get("num_key_value_heads") or heads) * head
    q = heads * head
    linears = (
        ("q_proj", hidden, q),
        ("k_proj", hidden, kv),
        ("v_proj", hidden, kv),
        ("o_proj", q, hidden),
        ("gate_proj", hidden, inner),
        ("up_proj", hidden, inner),
        ("down_proj", inner, hidden),
    )
    block = sum(a * b for _, a, b in linears) + 2 * hidden
    biased = kind in ("llama", "qwen3") and c.get("attention_bias")
    if kind == "qwen2" or biased:
        block += q + 2 * kv
    if biased:
        block += hidden
    if kind == "llama" and c.get("mlp_bias"):
        block += 2 * inner + hidden
    if kind == "qwen3":
        block += 2 * head
    total = layers * block + vocab * hidden + hidden
    if not c.get("tie_word_embeddings", False):
        total += vocab * hidden
    return ModelSize(total, block, layers, hidden, heads, vocab, linears)


def _gpt2(c: Mapping[str, Any]) -> ModelSize:
    """Learned positions, LayerNorm, fused attention (transformers, ``modeling_gpt2.py``)."""
    hidden, layers, vocab = int(c["n_embd"]), int(c["n_layer"]), int(c["vocab_size"])
    inner = int(c.get("n_inner") or 4 * hidden)
    linears = (
        ("c_attn", hidden, 3 * hidden),
        ("c_proj", hidden, hidden),
        ("c_fc", hidden, inner),
        ("c_proj", inner, hidden),
    )
    block = sum(a * b + b for _, a, b in linears) + 4 * hidden
    total = layers * block + (vocab + int(c["n_positions"])) * hidden + 2 * hidden
    if not c.get("tie_word_embeddings", True):
        total += vocab * hidden
    return ModelSize(total, block, layers, hidden, int(c["n_head"]), vocab, linears)


GB = 10**9
LARGE_MODEL = 2_000_000_000
"""Parameters from which on ``none`` means less memory (see distributed.reshard_after_forward)."""

_GPU_GB: tuple[tuple[str, int], ...] = (
    (r"gh200", 96), (r"gb200|b200", 180), (r"b300|gb300", 270), (r"h200", 141), (r"h20(?!0)", 96),
    (r"h100", 80), (r"h800", 80), (r"a100.*40|a100-sxm4-40", 40), (r"a100", 80), (r"a800", 80),
    (r"v100.*32", 32), (r"v100", 16), (r"l40", 48), (r"l4", 24), (r"a6000|a40", 48), (r"a30", 24),
    (r"a10", 24), (r"t4", 16), (r"mi355|mi350", 288), (r"mi325", 256), (r"mi300", 192),
    (r"mi250", 64), (r"5090", 32), (r"4090|3090", 24),
)  # fmt: skip
"""Memory of one device in GB, from the vendors' data sheets; the first that matches wins. An A100
without a size in its name is taken for the larger one."""


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on one rank at the fullest moment of a step, by what they are for."""

    parameters: int
    gathered: int
    gradients: int
    optimizer: int
    activations: int
    logits: int

    @property
    def total(self) -> int:
        """Sum of all."""
        return sum(asdict(self).values())


def gpu_memory_bytes(gpu_type: str) -> int | None:
    """Memory of a GPU by Slurm's name of its type (``h100``, ``a100_40gb``); None if not known."""
    name = gpu_type.lower()
    size = re.search(r"(\d+)\s*gb?\b", name)
    if size:
        return int(size.group(1)) * GB
    return next((gb * GB for pattern, gb in _GPU_GB if re.search(pattern, name)), None)


def optimizer_states(config: RunConfig) -> int:
    """Float32 values that the optimizer keeps for each trained parameter; Adam's two if unknown."""
    if config.optimizer.target == "torch.optim.SGD":
        return 1 if config.optimizer.extra.get("momentum") else 0
    return 2


def trained_parameters(config: RunConfig, size: ModelSize) -> int:
    """Parameters that get gradients: the adapters with LoRA, else all."""
    if config.peft is None:
        return size.parameters
    return size.adapters(config.peft.dim, config.peft.target_modules)


def checkpoint_bytes(config: RunConfig, size: ModelSize) -> int:
    """One checkpoint: float32 weights and optimizer state; 12 bytes a parameter with AdamW."""
    return 4 * trained_parameters(config, size) * (1 + optimizer_states(config))


def rank_memory(config: RunConfig, size: ModelSize, *, on_gpu: bool) -> MemoryEstimate:
    """Memory of one rank during a step; of a range of nodes, with the fewest, where it is most.

    Weights, gradients and optimizer state are exact up to padding; activations and logits are
    rough. Not counted: the allocator's fragmentation, the collectives' buffers, Python itself.
    """
    world_size = config.min_world_size
    batch = config.batch(world_size)
    shards = world_size // (config.distributed.dp_replicate_size or 1)
    width = 4 if config.model.torch_dtype == "float32" else 2
    large = size.parameters >= LARGE_MODEL
    reshard = config.distributed.reshard_after_forward
    if reshard is None:
        reshard = batch.accumulation == 1 or large
    defer = config.distributed.defer_grad_sync
    if defer is None:
        defer = not large or not on_gpu
    trained = trained_parameters(config, size)
    kept_whole = defer and batch.accumulation > 1 and world_size > 1
    outside = size.parameters - size.num_layers * size.block_parameters
    # While one block computes, the next is gathered already (FSDP2's prefetching); the root
    # (norm, head, tied embeddings) is never freed.
    gathered = min(size.parameters, 2 * size.block_parameters + outside)
    tokens = batch.local_size * config.sequence_length
    return MemoryEstimate(
        parameters=4 * size.parameters // shards,
        gathered=width * (gathered if reshard else size.parameters) if shards > 1 else 0,
        gradients=4 * (trained if kept_whole else trained // shards),
        optimizer=4 * optimizer_states(config) * trained // shards,
        activations=activation_bytes(config, size, tokens=tokens, width=width),
        logits=8 * tokens * size.vocab_size,
    )


def activation_bytes(config: RunConfig, size: ModelSize, *, tokens: int, width: int) -> int:
    """Activations kept for backward, for ``tokens`` tokens of a micro-batch.

    Korthikanti et al. 2022 (arXiv:2205.05198), section 4: a layer keeps ``s b h (34 + 5 a s / h)``
    bytes in 16 bit; the second term (attention scores) only with eager attention. With full
    checkpointing ``2 s b h`` a layer, and one whole layer at a time (section 5).
    """
    hidden = size.hidden_size
    scores = 5.0 * size.num_heads * config.sequence_length / hidden
    whole = 34.0 + (scores if config.model.attn_implementation == "eager" else 0.0)
    layers = size.num_layers
    if config.training_optimizations.activation_checkpointing:
        units = 2.0 * layers + whole
    else:
        units = whole * layers
    return int(tokens * hidden * units * width / 2)
