"""Packing: documents into sequences of a fixed size, best-fit decreasing. numpy only.

Best-fit decreasing (Johnson 1973) takes the documents from long to short and puts each into the
fullest sequence that still has room for it; at most 11/9 of the optimum plus one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from train.errors import DataError

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
    return _in_order(unit_of)


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


def _in_order(unit_of: Indices) -> Units:
    """Renumber units by their first document and list each unit's documents."""
    _, first, inverse = np.unique(unit_of, return_index=True, return_inverse=True)
    rank = np.empty(len(first), dtype=np.int64)
    rank[np.argsort(first, kind="stable")] = np.arange(len(first))
    numbered = rank[inverse]
    sizes = np.bincount(numbered, minlength=len(first))
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    return Units(offsets, np.argsort(numbered, kind="stable").astype(np.int64))
