"""Which samples an optimizer step consumes: nothing about the data has to be saved.

May import ``train.order`` only.
"""

from __future__ import annotations

from dataclasses import dataclass

from train.order import UnitOrder


@dataclass(frozen=True)
class DataOrder:
    """The endless stream of samples of one data set, as this rank sees it.

    A pure function of seed, sample count and step. So a resumed run goes on where it stood, and
    at another number of ranks a step still consumes the same samples.
    """

    units: UnitOrder
    rank: int
    world_size: int

    def of_step(self, step: int, global_batch_size: int) -> list[int]:
        """This rank's sample numbers for the step after ``step`` finished ones.

        Over all ranks ``global_batch_size`` samples; the shares differ by one at the most, so some
        are empty when there are more ranks than samples.
        """
        start = step * global_batch_size
        found = self.units.units(start, start + global_batch_size)
        return [sample for _, sample in found[self.rank :: self.world_size]]

    def epoch_of(self, step: int, global_batch_size: int) -> int:
        """Whole passes over the data before the step after ``step`` finished ones."""
        return step * global_batch_size // self.units.count
