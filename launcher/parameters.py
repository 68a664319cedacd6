"""How many parameters a model has, from its Hugging Face config alone. Pure; imports no torch.

Exact for the decoder families listed here (tests compare with transformers); None for others.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

Linear = tuple[str, int, int]
"""Name, input and output size of a linear layer."""

# Values that transformers 5.x fills in where a config leaves them out.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "llama": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
    },
    "mistral": {
        "vocab_size": 32000,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
    "qwen2": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
    },
    "qwen3": {
        "vocab_size": 151936,
        "hidden_size": 4096,
        "intermediate_size": 22016,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
    },
    "gpt2": {
        "vocab_size": 50257,
        "n_positions": 1024,
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
    },
}


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
    hidden, inner, layers = (
        int(c[k]) for k in ("hidden_size", "intermediate_size", "num_hidden_layers")
    )
    heads, vocab = int(c["num_attention_heads"]), int(c["vocab_size"])
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
