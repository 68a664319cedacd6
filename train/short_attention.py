"""Causal attention over one short document, as plain matrix products: for CPUs.

torch's CPU flash kernel is made for long rows. On documents of some hundred tokens two batched
matrix products and a softmax take less time, in bfloat16 half of it (docs/LOG.md).
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

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
