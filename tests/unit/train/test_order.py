"""The order of the data: every unit exactly once, whatever the world size does meanwhile."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.train.data.order import UnitOrder, epoch_order, rank_share

sizes = st.integers(1, 9)


@given(st.integers(0, 2**31 - 1), st.integers(0, 1000), st.integers(1, 300), st.booleans())
def test_epoch_visits_every_unit_once(seed: int, epoch: int, count: int, shuffle: bool) -> None:
    order = epoch_order(seed=seed, epoch=epoch, count=count, shuffle=shuffle)
    assert sorted(order.tolist()) == list(range(count))


def test_shuffled_stream_is_frozen() -> None:
    """A run resumed after an upgrade must see the same order: these numbers may never change."""
    order = epoch_order(seed=42, epoch=1, count=12, shuffle=True)
    assert order.tolist() == [11, 10, 3, 6, 5, 1, 2, 8, 9, 0, 7, 4]


@pytest.mark.parametrize(("a", "b"), [((1, 0), (1, 1)), ((1, 0), (2, 0)), ((0, 1), (1, 0))])
def test_order_depends_on_seed_and_epoch(a: tuple[int, int], b: tuple[int, int]) -> None:
    first = epoch_order(seed=a[0], epoch=a[1], count=100, shuffle=True)
    second = epoch_order(seed=b[0], epoch=b[1], count=100, shuffle=True)
    assert not np.array_equal(first, second)


def test_without_shuffle_units_come_in_their_own_order() -> None:
    assert [unit for _, unit in UnitOrder(4, seed=9, shuffle=False).units(2, 7)] == [2, 3, 0, 1, 2]


@given(st.integers(1, 40), st.integers(0, 10**9), st.integers(0, 100))
def test_any_range_equals_the_units_one_by_one(count: int, start: int, length: int) -> None:
    order = UnitOrder(count, seed=3, shuffle=True)
    fresh = UnitOrder(count, seed=3, shuffle=True)
    alone = [fresh.units(at, at + 1)[0] for at in range(start, start + length)]
    assert order.units(start, start + length) == alone


def test_range_across_epochs_names_both() -> None:
    assert [epoch for epoch, _ in UnitOrder(5, seed=0, shuffle=True).units(3, 12)] == [
        *[0, 0],
        *[1] * 5,
        *[2, 2],
    ]


def test_pickled_order_is_small_and_equal() -> None:
    order = UnitOrder(100_000, seed=5, shuffle=True)
    expected = order.units(77, 90)
    copy = pickle.dumps(order)
    assert len(copy) < 1000
    assert pickle.loads(copy).units(77, 90) == expected


def test_no_units_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least one unit"):
        UnitOrder(0, seed=0, shuffle=True)


@given(sizes, sizes, st.integers(0, 200))
def test_every_unit_of_a_step_falls_to_one_rank(world: int, local: int, total: int) -> None:
    accumulation = math.ceil(total / (local * world))
    shares = [
        rank_share(
            range(total), rank=rank, world_size=world, local_size=local, accumulation=accumulation
        )
        for rank in range(world)
    ]
    assert sorted(unit for share in shares for batch in share for unit in batch) == [*range(total)]


@given(sizes, sizes, st.integers(0, 200), st.integers(0, 3))
def test_every_rank_has_the_same_number_of_small_enough_micro_batches(
    world: int, local: int, total: int, more: int
) -> None:
    accumulation = math.ceil(total / (local * world)) + more
    for rank in range(world):
        share = rank_share(
            range(total), rank=rank, world_size=world, local_size=local, accumulation=accumulation
        )
        assert [len(batch) <= local for batch in share] == [True] * accumulation


def test_too_many_units_show_the_arithmetic() -> None:
    with pytest.raises(ValueError, match="9 units do not fit local 2 x accumulation 1 x world 4"):
        rank_share(range(9), rank=0, world_size=4, local_size=2, accumulation=1)


@given(
    st.integers(1, 60),
    st.integers(1, 16),
    st.integers(1, 4),
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), max_size=6),
)
def test_epochs_stay_exact_while_the_world_size_changes(
    count: int, total: int, local: int, attempts: list[tuple[int, int]]
) -> None:
    """Whatever worlds follow each other, two epochs visit every unit exactly twice."""
    position, end, seen = 0, 2 * count, []
    for world, steps in [*attempts, (3, 2 * count)]:
        order = UnitOrder(count, seed=1, shuffle=True)
        accumulation = math.ceil(total / (local * world))
        for _ in range(steps):
            units = order.units(position, min(position + total, end))
            for rank in range(world):
                share = rank_share(
                    units,
                    rank=rank,
                    world_size=world,
                    local_size=local,
                    accumulation=accumulation,
                )
                seen += [unit for batch in share for unit in batch]
            position += len(units)
    assert sorted(seen) == sorted((epoch, unit) for epoch in range(2) for unit in range(count))
