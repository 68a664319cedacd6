"""Loss spikes: the usual loss and its spread over a moving window. Pure.

A watcher asks for every step of every run, so most answers have to come without the spread.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence

WINDOW = 128
MIN_LOSSES = 20
"""Losses from which on "usual" means something."""
MAD_TO_SIGMA = 1.4826
"""Standard deviations in a median absolute deviation, of a normal distribution."""


class UsualLosses:
    """The last usual losses, by time and by size."""

    def __init__(self) -> None:
        self.values: list[float] = []
        """By size."""
        self._by_time: deque[float] = deque()

    def add(self, value: float) -> None:
        """Take a loss in; beyond the window the oldest leaves."""
        if len(self._by_time) == WINDOW:
            del self.values[bisect_left(self.values, self._by_time.popleft())]
        self._by_time.append(value)
        insort(self.values, value)

    @property
    def median(self) -> float:
        """The middle of them."""
        middle, odd = divmod(len(self.values), 2)
        if odd:
            return self.values[middle]
        return (self.values[middle - 1] + self.values[middle]) / 2

    def z_above(self, value: float, limit: float) -> float | None:
        """By how many deviations a loss is above the median, None where that is at most ``limit``.

        Less than half of the values lie strictly between the quartiles, so the median absolute
        deviation is at least the distance of the median to the nearer one: that mostly decides.
        """
        count, usual = len(self.values), self.median
        low, high = self.values[count // 4], self.values[count - 1 - count // 4]
        least = max(0.0, min(usual - low, high - usual))
        floor = max(1e-3 * abs(usual), 1e-12)
        if value - usual <= limit * max(MAD_TO_SIGMA * least, floor) * (1 - 1e-9):
            return None
        spread = MAD_TO_SIGMA * statistics.median(abs(one - usual) for one in self.values)
        z = (value - usual) / max(spread, floor)
        return z if z > limit else None


def find_spike(
    points: Sequence[tuple[int, float]], *, z_limit: float, num_steps: int, after: int
) -> tuple[int, float, float, float] | None:
    """The first (step, loss, usual, z) with ``num_steps`` high ones in a row, beyond ``after``."""
    in_a_row = 0
    usual = UsualLosses()
    for step, value in points:
        z = usual.z_above(value, z_limit) if len(usual.values) >= MIN_LOSSES else None
        if z is None:
            # Only these count as usual: a spike would hide itself.
            in_a_row = 0
            usual.add(value)
            continue
        in_a_row += 1
        if in_a_row >= num_steps and step > after:
            return step, value, usual.median, z
    return None
