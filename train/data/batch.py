"""Micro-batches: documents one after the other in a flat row, and what keeps them apart.

Packing puts documents into sequences of a fixed size, best-fit decreasing (Johnson 1973): from long
to short, each into the fullest sequence that still has room for it; at most 11/9 of the optimum
plus one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from submitrain.errors import DataError
from submitrain.train.data.store import TokenStore

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """Which documents each unit holds: ``docs[offsets[u]:offsets[u + 1]]``, ascending."""

    offsets: Indices
    docs: Indices

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, unit: int) -> Indices:
        return self.docs[self.offsets[unit] : self.offsets[unit + 1]]

    def fill_rate(self, lengths: Indices, size: int) -> float:
        """Share of the sequences' slots that hold a token."""
        return float(lengths[self.docs].sum() / (len(self) * size))


def one_per_unit(count: int) -> Units:
    """Without packing: every document is a unit."""
    return Units(np.arange(count + 1, dtype=np.int64), np.arange(count, dtype=np.int64))


def pack(lengths: Indices, size: int) -> Units:
    """Put documents of the given ``lengths`` (tokens, int64 [docs]) into sequences of ``size``.

    Deterministic. Units are numbered by their first document, so without shuffling the data still
    come about in their own order.

    Raises:
        DataError: a document is longer than a sequence.
    """
    if len(lengths) and int(lengths.max()) > size:
        raise DataError(
            f"packed_sequence.packed_sequence_size: {size} is less than the longest document "
            f"({int(lengths.max())} tokens); next: lower dataset.max_length to {size} or raise "
            "packed_sequence_size"
        )
    by_length = np.argsort(-lengths, kind="stable").astype(np.int64)
    unit_of = np.empty(len(lengths), dtype=np.int64)
    unit_of[by_length] = _best_fit(lengths[by_length].tolist(), size)
    # Renumber units by their first document and list each unit's documents.
    _, first, inverse = np.unique(unit_of, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    numbered = rank[inverse]
    sizes = np.bincount(numbered, minlength=len(first))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Units(offsets, np.argsort(numbered, kind="stable").astype(np.int64))


def _best_fit(lengths: list[int], size: int) -> list[int]:
    """The sequence that each document goes to; ``lengths`` descend.

    ``rooms`` is a bit set of the free sizes that some sequence has, so the tightest fit is its
    lowest set bit at or above the document's length.
    """
    free: list[list[int]] = [[] for _ in range(size + 1)]
    rooms, opened = 0, 0
    chosen: list[int] = []
    for length in lengths:
        fitting = rooms >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            unit = free[room].pop()
            if not free[room]:
                rooms ^= 1 << room
        else:
            unit, room = opened, size
            opened += 1
        left = room - length
        free[left].append(unit)
        rooms |= 1 << left
        chosen.append(unit)
    return chosen


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
        for start in range(tokens, padding.total, padding.chunk):
            length = min(padding.chunk, padding.total - start)
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
