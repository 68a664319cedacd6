"""Packing: every document once, no sequence too full, and few empty slots."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.errors import DataError
from submitrain.train.data.batch import one_per_unit, pack

lengths = st.lists(st.integers(1, 64), max_size=120).map(lambda items: np.array(items, dtype=int))


def best_fit(items: list[int], size: int) -> int:
    """Number of sequences of best-fit decreasing, as the textbook writes it."""
    rooms: list[int] = []
    for item in sorted(items, reverse=True):
        fitting = [room for room in rooms if room >= item]
        if fitting:
            rooms.remove(min(fitting))
            rooms.append(min(fitting) - item)
        else:
            rooms.append(size - item)
    return len(rooms)


@given(lengths)
def test_every_document_is_in_one_unit(items: np.ndarray) -> None:
    units = pack(items, 64)
    docs = [int(doc) for unit in range(len(units)) for doc in units[unit]]
    assert sorted(docs) == list(range(len(items)))


@given(lengths)
def test_no_unit_is_longer_than_the_sequence(items: np.ndarray) -> None:
    units = pack(items, 64)
    assert all(items[units[unit]].sum() <= 64 for unit in range(len(units)))


@given(lengths)
def test_as_few_units_as_best_fit_decreasing(items: np.ndarray) -> None:
    assert len(pack(items, 64)) == best_fit(items.tolist(), 64)


@given(lengths)
def test_units_are_numbered_by_their_first_document(items: np.ndarray) -> None:
    units = pack(items, 64)
    firsts = [int(units[unit][0]) for unit in range(len(units))]
    assert firsts == sorted(firsts)


def test_packing_never_changes() -> None:
    """A run resumed after an upgrade must find the same documents in the same units."""
    units = pack(np.array([5, 9, 2, 4, 7, 1, 8, 3, 6]), 10)
    assert [units[unit].tolist() for unit in range(len(units))] == [
        [0],
        [1, 5],
        [2, 6],
        [3, 8],
        [4, 7],
    ]


def test_fill_rate_of_real_looking_lengths_is_high() -> None:
    items = np.random.RandomState(0).lognormal(5, 1, 20_000).astype(np.int64).clip(8, 2048)
    assert pack(items, 2048).fill_rate(items, 2048) > 0.99


def test_too_long_document_is_refused() -> None:
    with pytest.raises(DataError, match="8 is less than the longest document"):
        pack(np.array([3, 9]), 8)


def test_without_packing_units_are_documents() -> None:
    units = one_per_unit(4)
    assert [units[unit].tolist() for unit in range(len(units))] == [[0], [1], [2], [3]]
