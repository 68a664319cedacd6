"""The usual loss and its spread over a moving window. Pure.

A watcher asks for every step of every run, so most answers have to come without the spread.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, insort
from collections import deque

WINDOW = 128
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
