"""Attention over documents that lie one behind the other in one row: none sees another.

Registered with transformers' AttentionInterface, so a model's own code stays as it is. The
documents' boundaries travel as keyword arguments (``cu_seq_lens_q`` and so on, the names that
transformers uses for flash attention) through the model to the attention function.

Which models may go this way is a list, each entry proven by a test (packed equals separate): a
model that silently ignored the boundaries would train on mixed documents. All others are computed
with one document per padded row, exactly as transformers defines them, slower.

torch's CPU flash kernel is made for long rows: on documents of some hundred tokens two batched
matrix products and a softmax take less time, in bfloat16 half of it (docs/LOG.md).
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol

import structlog
import torch
import torch.nn.functional as F
from torch import Tensor

from submitrain.errors import ConfigError

if TYPE_CHECKING:
    from transformers import PretrainedConfig


LONGEST = {torch.float32: 400, torch.bfloat16: 1024}
"""Tokens up to which this is faster than the flash kernel, by dtype."""


def is_short(query: Tensor) -> bool:
    """Whether this way is the faster one for ``query`` [1, heads, length, head_dim]."""
    return query.device.type == "cpu" and query.shape[2] <= LONGEST.get(query.dtype, 0)


def short_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """Causal attention [1, heads, length, head_dim]; key and value may have fewer heads."""
    heads, kv_heads, length, size = query.shape[1], key.shape[1], query.shape[2], query.shape[3]
    rows = query[0].reshape(kv_heads, heads // kv_heads * length, size)
    output: Tensor = _Causal.apply(rows, key[0], value[0], scale)  # type: ignore[no-untyped-call]
    return output.view(1, heads, length, value.shape[3])


@cache
def _future(dtype: torch.dtype) -> Tensor:
    """[longest, longest]: minus infinity where a position would look ahead."""
    size = LONGEST[dtype]
    return torch.full((size, size), float("-inf"), dtype=dtype).triu(1)


class _Causal(torch.autograd.Function):
    """Keeps the probabilities for backward: few, since documents are short."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """Rows of ``query`` [kv_heads, groups x length, size]: the heads of a group one by one."""
        length = key.shape[1]
        mask = _future(query.dtype)[:length, :length]
        groups = query.shape[1] // length
        mask = mask.repeat(groups, 1) if groups > 1 else mask
        scores = torch.baddbmm(mask.unsqueeze(0), query, key.transpose(1, 2), alpha=scale)
        chances = torch.softmax(scores, -1)
        ctx.save_for_backward(query, key, value, chances)
        ctx.scale = scale
        return torch.bmm(chances, value)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        """Gradients of query, key and value."""
        query, key, value, chances = ctx.saved_tensors
        [gradient] = gradients
        of_value = torch.bmm(chances.transpose(1, 2), gradient)
        of_chances = torch.bmm(gradient, value.transpose(1, 2))
        of_scores = torch._softmax_backward_data(of_chances, chances, -1, chances.dtype)
        of_query = torch.bmm(of_scores, key).mul_(ctx.scale)
        of_key = torch.bmm(of_scores.transpose(1, 2), query).mul_(ctx.scale)
        return of_query, of_key, of_value, None


log = structlog.get_logger(__name__)

VARLEN_MODELS = frozenset(
    [
        "gemma",
        "glm4",
        "gpt2",
        "gpt_neox",
        "granite",
        "llama",
        "mistral",
        "mixtral",
        "olmo2",
        "phi3",
        "qwen2",
        "qwen3",
        "qwen3_moe",
        "smollm3",
        "starcoder2",
    ]
)
"""Model types proven to honour document boundaries (tests/unit/train/test_model_attention.py)."""

PER_DOCUMENT = "submitrain_per_document"
TORCH_VARLEN = "submitrain_torch_varlen"


class Layout(StrEnum):
    """How documents are laid before the model."""

    FLAT = "flat"
    """One row [1, T]; the attention keeps documents apart."""
    PADDED = "padded"
    """One document per row [D, longest]; a mask hides the padding."""


@dataclass(frozen=True)
class AttentionPlan:
    """The attention that this run uses; ``implementation`` is transformers' name for it."""

    implementation: str
    layout: Layout
    why: str


class _Attends(Protocol):
    is_causal: bool


def plan_attention(
    asked: str, config: PretrainedConfig, device: torch.device, dtype: str
) -> AttentionPlan:
    """Choose kernel and layout from what was asked for, the model, the device and the dtype.

    Raises:
        ConfigError: flash attention was asked for where it cannot run.
    """
    model_type = config.model_type
    if asked == "flash_attention_2":
        _require_flash(device, dtype)
    if asked == "eager":
        return AttentionPlan("eager", Layout.PADDED, "eager knows no packed rows")
    if model_type not in VARLEN_MODELS:
        name = asked if asked != "auto" else "sdpa"
        why = f"{model_type} is not proven to keep packed documents apart"
        return AttentionPlan(name, Layout.PADDED, why)
    if asked == "flash_attention_2":
        return AttentionPlan(asked, Layout.FLAT, "as asked")
    if device.type == "cuda" and dtype != "float32" and asked == "auto":
        if find_spec("flash_attn"):
            return AttentionPlan("flash_attention_2", Layout.FLAT, "flash-attn is installed")
        if _torch_varlen_fits():
            return AttentionPlan(TORCH_VARLEN, Layout.FLAT, "torch's own; no flash-attn installed")
    return AttentionPlan(PER_DOCUMENT, Layout.FLAT, "one sdpa call for each document")


def _require_flash(device: torch.device, dtype: str) -> None:
    where = "model.attn_implementation: flash_attention_2"
    if device.type != "cuda":
        raise ConfigError(f"{where} needs a GPU, and this rank has none; use auto or sdpa")
    if dtype == "float32":
        raise ConfigError(f"{where} computes in 16 bit only; set model.torch_dtype: bfloat16")
    if not find_spec("flash_attn"):
        raise ConfigError(
            f"{where}: the package flash-attn is not installed; "
            "pip install flash-attn --no-build-isolation, or use auto or sdpa"
        )


def _torch_varlen_fits() -> bool:
    """Whether this torch's varlen_attn has sliding windows, hence also causal ones (2.13 has)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return False
    return "window_size" in inspect.signature(varlen_attn).parameters


def register() -> None:
    """Make our attention functions known to transformers; harmless when repeated."""
    from transformers import AttentionInterface

    AttentionInterface.register(PER_DOCUMENT, per_document_attention)
    AttentionInterface.register(TORCH_VARLEN, torch_varlen_attention)


def boundaries(cu_seqlens: Tensor, longest: int) -> dict[str, Any]:
    """Keyword arguments that carry document boundaries [documents + 1] through a model."""
    return {
        "cu_seq_lens_q": cu_seqlens,
        "cu_seq_lens_k": cu_seqlens,
        "max_length_q": longest,
        "max_length_k": longest,
    }


@torch.compiler.disable  # type: ignore[untyped-decorator]
def per_document_attention(
    module: _Attends,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """Causal attention, one call per document; the fastest exact way on CPUs (docs/LOG.md).

    Args:
        query: [1, heads, T, head_dim]; key and value may have fewer heads.

    Returns:
        [1, T, heads, head_dim] and no weights.
    """
    window = _checked_window(attention_mask, kwargs)
    lengths = torch.diff(kwargs["cu_seq_lens_q"]).tolist()
    dtype = query.dtype
    if dtype != torch.float32 and not fast_16_bit(query.device):
        query, key, value = query.float(), key.float(), value.float()
    documents = [
        _attend(*parts, window=window, dropout=dropout, scaling=scaling)
        for parts in zip(*(torch.split(t, lengths, 2) for t in (query, key, value)), strict=True)
    ]
    return torch.cat(documents, 2).transpose(1, 2).to(dtype).contiguous(), None


def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    *,
    window: int | None,
    dropout: float,
    scaling: float | None,
) -> Tensor:
    """Causal attention within one document: [1, heads, length, head_dim]."""
    length, size = query.shape[2:]
    everything = window is None or window >= length
    if everything and not dropout and is_short(query):
        return short_attention(query, key, value, size**-0.5 if scaling is None else scaling)
    return F.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=_window_mask(query, window),
        is_causal=everything,
        dropout_p=dropout,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )


def torch_varlen_attention(
    module: _Attends,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """torch's own flash kernel for rows of documents; GPUs and 16-bit dtypes only.

    It knows no dropout: with attention dropout every document is computed by itself.
    """
    if dropout:
        output: tuple[Tensor, None] = per_document_attention(
            module, query, key, value, attention_mask, dropout, scaling, **kwargs
        )
        return output
    from torch.nn.attention.varlen import varlen_attn

    window = _checked_window(attention_mask, kwargs)
    groups = query.shape[1] // key.shape[1]
    q, k, v = (t[0].transpose(0, 1).contiguous() for t in (query, key, value))
    rows = varlen_attn(
        q,  # [T, heads, head_dim]
        k.repeat_interleave(groups, 1) if groups > 1 else k,
        v.repeat_interleave(groups, 1) if groups > 1 else v,
        kwargs["cu_seq_lens_q"],
        kwargs["cu_seq_lens_k"],
        kwargs["max_length_q"],
        kwargs["max_length_k"],
        scale=scaling,
        window_size=(window - 1 if window else -1, 0),
    )
    assert isinstance(rows, Tensor)
    return rows.unsqueeze(0), None


def _checked_window(attention_mask: Tensor | None, kwargs: Mapping[str, Any]) -> int | None:
    """Width of a sliding window; refuses what would change the result and is not computed here."""
    if attention_mask is not None:
        raise ConfigError("attention: a mask on packed rows; set model.attn_implementation: eager")
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ConfigError(
                f"attention: this model uses {name}, which packed rows do not support; "
                "set model.attn_implementation: eager"
            )
    window = kwargs.get("sliding_window")
    return int(window) if window else None


def _window_mask(query: Tensor, window: int | None) -> Tensor | None:
    """[length, length]: true where a position may look, itself and ``window - 1`` before it."""
    length = query.shape[2]
    if window is None or window >= length:
        return None
    may = torch.ones(length, length, dtype=torch.bool, device=query.device)
    return may.tril().triu(1 - window)


@cache
def fast_16_bit(device: torch.device) -> bool:
    """Whether 16-bit matmul is native; on other CPUs torch emulates it, 5 to 40 times slower."""
    if device.type != "cpu":
        return True
    capabilities: dict[str, object] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
