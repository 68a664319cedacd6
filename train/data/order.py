"""The order of the data: pure functions of (seed, epoch, position), so nothing has to be saved.

A *unit* is one row of a micro-batch: a packed sequence, or one document without packing. A
*position* counts units since the start of the run, over all epochs; a rollback may take windows of
positions out of the stream (submitrain.rollbacks). World size and number
of loader processes only decide who takes which unit, never which units a step has; so both may
change at any step. May import numpy and submitrain.rollbacks only.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from submitrain.rollbacks import NO_SKIPS, Skips

Indices = npt.NDArray[np.int64]
T = TypeVar("T")


def epoch_order(*, seed: int, epoch: int, count: int, shuffle: bool) -> Indices:
    """The order in which an epoch visits its ``count`` units: a permutation, int64 [count].

    ``RandomState`` is used on purpose: NEP 19 froze its stream, so a run resumed under another
    numpy sees the same order.
    """
    if not shuffle:
        return np.arange(count, dtype=np.int64)
    order = np.random.RandomState([seed, epoch]).permutation(count)
    return order.astype(np.int64, copy=False)


@dataclass
class UnitOrder:
    """The endless stream of units, epoch after epoch.

    Looking up a range costs one permutation for every epoch that it touches (the last one is kept)
    and does not depend on the position.
    """

    count: int
    seed: int
    shuffle: bool
    skips: Skips = NO_SKIPS
    _epoch: int = field(default=-1, init=False, repr=False, compare=False)
    _order: Indices | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count: expected at least one unit, got {self.count}")

    def __getstate__(self) -> dict[str, int | bool | Skips | None]:
        """Travel to loader processes without the cached permutation."""
        fields: dict[str, int | bool | Skips | None] = {
            "count": self.count,
            "seed": self.seed,
            "shuffle": self.shuffle,
            "skips": self.skips,
        }
        return {**fields, "_epoch": -1, "_order": None}

    def units(self, start: int, stop: int) -> list[tuple[int, int]]:
        """(epoch, unit) at the positions ``start`` to ``stop`` (not included) but the skipped."""
        ranges = self.skips.ranges(start, stop)
        return [found for first, end in ranges for found in self._units(first, end)]

    def _units(self, start: int, stop: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while start < stop:
            epoch, offset = divmod(start, self.count)
            taken = min(stop - start, self.count - offset)
            found.extend((epoch, int(unit)) for unit in self._of(epoch)[offset : offset + taken])
            start += taken
        return found

    def _of(self, epoch: int) -> Indices:
        if self._order is None or epoch != self._epoch:
            self._order = epoch_order(
                seed=self.seed, epoch=epoch, count=self.count, shuffle=self.shuffle
            )
            self._epoch = epoch
        return self._order


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
