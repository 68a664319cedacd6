"""Micro-batches: documents one after the other in a flat row, and what keeps them apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from train.data.store import TokenStore

IGNORED = -100
"""Label of a position without loss (torch's ``ignore_index``)."""


@dataclass(frozen=True)
class MicroBatch:
    """Documents of one micro-batch, concatenated (varlen). T tokens, D documents.

    Attributes:
        input_ids: int64 [1, T].
        position_ids: int64 [1, T]; start at 0 in every document.
        labels: int64 [1, T], already shifted: ``labels[0, t]`` is what position t has to predict,
            -100 where nothing is learned; never the next document's first token.
        cu_seqlens: int32 [D + 1], borders of the documents, padding included.
        max_seqlen: length of the longest document.
        label_positions: int64 [n], positions with a label.
        doc_ids: sample numbers of the documents in their data set; padding has none.
        tokens: real tokens, without padding.
        label_tokens: positions with a label.
    """

    input_ids: Tensor
    position_ids: Tensor
    labels: Tensor
    cu_seqlens: Tensor
    max_seqlen: int
    label_positions: Tensor
    doc_ids: tuple[int, ...]
    tokens: int
    label_tokens: int

    def to(self, device: torch.device | str, *, non_blocking: bool = False) -> MicroBatch:
        """The same batch on ``device``."""
        return self._each(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> MicroBatch:
        """The same batch in page-locked memory; torch's loaders call this."""
        return self._each(lambda tensor: tensor.pin_memory())

    def __reduce__(self) -> tuple[Callable[..., MicroBatch], tuple[Any, ...]]:
        """Travel from loader processes as plain arrays: torch would open a file descriptor and a
        piece of /dev/shm, which containers keep small, for every tensor."""
        values = (getattr(self, item.name) for item in fields(self))
        return _restore, tuple(v.numpy() if isinstance(v, Tensor) else v for v in values)

    def _each(self, change: Callable[[Tensor], Tensor]) -> MicroBatch:
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        changed: dict[str, Any] = {
            name: change(value) for name, value in values.items() if isinstance(value, Tensor)
        }
        return replace(self, **changed)


def _restore(*values: Any) -> MicroBatch:
    restored: list[Any] = [torch.from_numpy(v) if isinstance(v, np.ndarray) else v for v in values]
    return MicroBatch(*restored)


@dataclass(frozen=True)
class Padding:
    """A fixed row length for compiled graphs, filled up with documents of at most ``chunk``."""

    total: int
    chunk: int


def collate(
    store: TokenStore, docs: Sequence[int] | npt.NDArray[np.int64], padding: Padding | None = None
) -> MicroBatch:
    """Read documents and lay them one after the other; no documents give ``empty_batch``."""
    if not len(docs):
        return empty_batch(padding)
    read = [store.document(int(doc)) for doc in docs]
    ids = [tokens.astype(np.int64) for tokens, _ in read]
    labels = [_shifted(tokens, is_label) for tokens, is_label in read]
    doc_ids = tuple(int(store.sample_ids[int(doc)]) for doc in docs)
    return _assemble(ids, labels, doc_ids, padding)


def empty_batch(padding: Padding | None = None) -> MicroBatch:
    """A micro-batch without data, for a rank that has none: its loss and gradient are zero."""
    if padding is not None:
        return _assemble([], [], (), padding)
    dummy = np.zeros(2, dtype=np.int64)
    return replace(_assemble([dummy], [np.full(2, IGNORED)], (), None), tokens=0)


def _shifted(
    tokens: npt.NDArray[np.int32], is_label: npt.NDArray[np.bool_]
) -> npt.NDArray[np.int64]:
    labels = np.full(len(tokens), IGNORED, dtype=np.int64)
    np.copyto(labels[:-1], tokens[1:], where=is_label[1:])
    return labels


def _assemble(
    ids: list[npt.NDArray[np.int64]],
    labels: list[npt.NDArray[np.int64]],
    doc_ids: tuple[int, ...],
    padding: Padding | None,
) -> MicroBatch:
    tokens = sum(map(len, ids))
    if padding is not None:
        for length in _chunks(padding.total - tokens, padding.chunk):
            ids.append(np.zeros(length, dtype=np.int64))
            labels.append(np.full(length, IGNORED))
    lengths = np.array([len(document) for document in ids], dtype=np.int64)
    ends = np.cumsum(lengths)
    all_labels = np.concatenate(labels)
    label_positions = np.flatnonzero(all_labels != IGNORED)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(ids))[None],
        position_ids=torch.from_numpy(np.arange(ends[-1]) - np.repeat(ends - lengths, lengths))[
            None
        ],
        labels=torch.from_numpy(all_labels)[None],
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        max_seqlen=int(lengths.max()),
        label_positions=torch.from_numpy(label_positions),
        doc_ids=doc_ids,
        tokens=tokens,
        label_tokens=len(label_positions),
    )


def _chunks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
