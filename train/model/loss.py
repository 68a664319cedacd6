"""From a micro-batch to a loss: the sum of its label tokens' cross-entropies, in float32.

The head runs on labelled positions only, and for large vocabularies in chunks, so that the logits
of a whole micro-batch never exist at once.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from submitrain.train.data.batch import MicroBatch
from submitrain.train.model.attention import Layout, boundaries

CHUNK_BYTES = 256 * 2**20
"""Logits in float32 that may exist at once, in bytes."""


class ChunkedHead:
    """Lets a model's output head return token losses instead of logits while ``targets`` are set.

    It replaces the head's ``forward``: hooks (FSDP gathers the weight in one) stay as they are.
    """

    def __init__(self, head: nn.Module, chunk_rows: int) -> None:
        self.head, self.chunk_rows = head, chunk_rows
        self.plain_forward = head.forward
        self.labels: Tensor | None = None
        head.forward = self.forward

    @contextmanager
    def targets(self, labels: Tensor) -> Iterator[None]:
        """Return losses for ``labels`` [rows] inside the block."""
        self.labels = labels
        try:
            yield
        finally:
            self.labels = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary]; with targets, losses [rows] in float32."""
        if self.labels is None:
            logits: Tensor = self.plain_forward(hidden)
            return logits
        rows = torch.split(hidden.reshape(-1, hidden.shape[-1]), self.chunk_rows)
        labels = torch.split(self.labels, self.chunk_rows)
        weight, bias = self.head.weight, self.head.bias
        return torch.cat(
            [
                checkpoint(_token_losses, *part, weight, bias, use_reentrant=False)
                for part in zip(rows, labels, strict=True)
            ]
        )


def _token_losses(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none")


def chunked_head(model: nn.Module, vocabulary: int) -> ChunkedHead | None:
    """A chunked head, or None where the model does more with its logits than return them.

    Gemma 2 caps them, Granite and Cohere scale them: told from the source of ``forward``.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear):
        return None
    try:
        source = inspect.getsource(inspect.unwrap(type(model).forward))
    except (OSError, TypeError):
        return None
    made = re.findall(r"^\s*logits\s+[-+*/]?=\s+(.+)$", source, re.MULTILINE)
    plain = r"self\.(lm_head|embed_out)\(hidden_states(\[.*\])?\)(\.float\(\))?"
    if len(made) != 1 or not re.fullmatch(plain, made[0].strip()):
        return None
    return ChunkedHead(head, max(1, CHUNK_BYTES // (4 * vocabulary)))


@dataclass(frozen=True)
class LanguageModel:
    """A (sharded) causal LM and how to compute its loss."""

    module: nn.Module
    layout: Layout
    head: ChunkedHead | None

    def loss_sum(self, batch: MicroBatch) -> Tensor:
        """Summed cross-entropy of the batch's label tokens: a float32 scalar.

        A batch without labels gives an exact zero that backward still flows through.
        """
        labels = batch.labels[0, batch.label_positions]
        inputs = self._flat(batch) if self.layout is Layout.FLAT else self._padded(batch)
        if self.head is not None and len(labels) > self.head.chunk_rows:
            with self.head.targets(labels):
                losses: Tensor = self.module(**inputs).logits
                return losses.sum()
        logits = self.module(**inputs).logits
        logits = logits.reshape(-1, logits.shape[-1]).float()
        return F.cross_entropy(logits, labels, reduction="sum")

    def _flat(self, batch: MicroBatch) -> dict[str, Any]:
        """All documents in one row [1, T]; the attention keeps them apart."""
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "attention_mask": None,
            "use_cache": False,
            "logits_to_keep": batch.label_positions,
            **boundaries(batch.cu_seqlens, batch.max_seqlen),
        }

    def _padded(self, batch: MicroBatch) -> dict[str, Any]:
        """One document per row [documents, longest], padded on the right, with a mask."""
        starts = batch.cu_seqlens[:-1].long()
        lengths = torch.diff(batch.cu_seqlens).long()
        columns = torch.arange(int(lengths.max()), device=starts.device)
        real = columns < lengths[:, None]
        source = torch.where(real, starts[:, None] + columns, 0)
        labelled = torch.zeros_like(batch.labels[0], dtype=torch.bool)
        labelled[batch.label_positions] = True
        return {
            "input_ids": torch.where(real, batch.input_ids[0, source], 0),
            "attention_mask": real.long(),
            "use_cache": False,
            "logits_to_keep": labelled[source] & real,
        }
