"""Windows of the data that a run leaves out: pure arithmetic on positions. Imports nothing of this
project.

A position counts units since the start of the run, over all epochs (train.order). A window
``(start, stop)`` takes the positions from ``start`` to ``stop`` (not included) out of the stream;
all others are consumed exactly once, whatever the world size.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

Window = tuple[int, int]


@dataclass(frozen=True)
class Skips:
    """Disjoint windows in order; the same on every rank and in every attempt that follows."""

    windows: tuple[Window, ...] = ()

    @classmethod
    def of(cls, windows: Iterable[Window]) -> Skips:
        """Windows in any order, overlapping or not, as disjoint ones."""
        merged: list[Window] = []
        for start, stop in sorted(w for w in windows if w[0] < w[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    def ranges(self, start: int, stop: int) -> list[Window]:
        """What is left of the positions ``start`` to ``stop`` (not included), in order."""
        left: list[Window] = []
        for first, end in self.windows:
            if end <= start:
                continue
            if first >= stop:
                break
            if start < first:
                left.append((start, first))
            start = end
        if start < stop:
            left.append((start, stop))
        return left

    def kept(self, start: int, stop: int) -> int:
        """How many of the positions ``start`` to ``stop`` (not included) are left."""
        return sum(end - first for first, end in self.ranges(start, stop))

    def advance(self, position: int, count: int) -> int:
        """Where the stream stands once ``count`` more units were consumed from ``position`` on."""
        for first, end in self.windows:
            if end <= position:
                continue
            room = max(0, first - position)
            if count <= room:
                return position + count
            count, position = count - room, end
        return position + count

    def covers(self, other: Skips) -> bool:
        """Whether everything that ``other`` leaves out is left out here, too."""
        return all(not self.kept(start, stop) for start, stop in other.windows)

    @classmethod
    def parse(cls, text: str) -> Skips:
        """Inverse of ``text``."""
        found = re.findall(r"\[(\d+), (\d+)\)", text)
        return cls.of((int(start), int(stop)) for start, stop in found)

    @property
    def text(self) -> str:
        """``[40, 48), [96, 100)``."""
        return ", ".join(f"[{start}, {stop})" for start, stop in self.windows)


NO_SKIPS = Skips()
"""Nothing is left out."""
