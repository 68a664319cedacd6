"""The order of the data: pure functions of (seed, epoch, position), so nothing has to be saved.

A *unit* is one row of a micro-batch: a packed sequence, or one document without packing. A
*position* counts units since the start of the run, over all epochs; a rollback may take windows of
positions out of the stream (submitrain.rollbacks). World size and number
of loader processes only decide who takes which unit, never which units a step has; so both may
change at any step. May import numpy and submitrain.rollbacks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from submitrain.rollbacks import NO_SKIPS, Skips

Indices = npt.NDArray[np.int64]
T = TypeVar("T")


@lru_cache(maxsize=2)
def epoch_order(*, seed: int, epoch: int, count: int, shuffle: bool) -> Indices:
    """The order in which an epoch visits its ``count`` units: a permutation, int64 [count].

    ``RandomState`` is used on purpose: NEP 19 froze its stream, so a run resumed under another
    numpy sees the same order. The newest ones are kept; they must not be changed.
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    order = np.random.RandomState([seed, epoch]).permutation(count)
    return order.astype(np.int64, copy=False)


@dataclass(frozen=True)
class UnitOrder:
    """The endless stream of units, epoch after epoch.

    Looking up a range costs one permutation for every epoch that it touches (the newest are kept)
    and does not depend on the position.
    """

    count: int
    seed: int
    shuffle: bool
    skips: Skips = NO_SKIPS

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least one unit, got {self.count}")

    def units(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, unit) at the positions ``start`` to ``stop`` (not included) but the skipped."""
        found: list[tuple[int, int]] = []
        for begin, end in self.skips.ranges(start, stop):
            first = begin
            while first < end:
                epoch, offset = divmod(first, self.count)
                taken = min(end - first, self.count - offset)
                order = epoch_order(
                    seed=self.seed, epoch=epoch, count=self.count, shuffle=self.shuffle
                )
                found += [(epoch, int(unit)) for unit in order[offset : offset + taken]]
                first += taken
        return found


def rank_share(
    units: Sequence[T], *, rank: int, world_size: int, local_size: int, accumulation: int
) -> list[list[T]]:
    """The units of a step that fall to one rank, as ``accumulation`` micro-batches.

    Unit ``j`` goes to rank ``j % world_size``; a micro-batch holds at most ``local_size`` units and
    may be empty, on any rank, when the step's units do not fill all slots.

    Raises:
        ValueError: the step has more units than slots.
    """
    slots = local_size * accumulation * world_size
    if len(units) > slots:
        raise ValueError(
            f"{len(units)} units do not fit local {local_size} x accumulation {accumulation} x "
            f"world {world_size} = {slots} slots"
        )
    mine = units[rank::world_size]
    return [list(mine[i * local_size : (i + 1) * local_size]) for i in range(accumulation)]
