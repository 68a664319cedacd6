"""Splits with slices, as the Hugging Face ``datasets`` library writes them: ``train[:95%]``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from train.errors import DataError

_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A split's name and the part of it to use; bounds are ``100``, ``-5`` or ``95%``."""

    name: str
    start: str | None = None
    stop: str | None = None

    def bounds(self, count: int) -> tuple[int, int]:
        """First row and the row after the last one, out of ``count`` rows.

        Percentages are rounded to the nearest row, as ``datasets`` does, so ``[:95%]`` and
        ``[95%:]`` share their border and no row.
        """
        start = _bound(self.start, count, default=0)
        stop = _bound(self.stop, count, default=count)
        return start, max(start, stop)


def parse_split(text: str) -> Split:
    """Read ``train``, ``train[:90%]``, ``train[100:200]`` or ``train[-5%:]``.

    Raises:
        DataError: none of these.
    """
    match = _SPLIT.fullmatch(text.strip().replace(" ", ""))
    if match is None:
        raise DataError(
            f"dataset.split: expected a split such as train, train[:95%], train[100:200] or "
            f"train[-5%:], got {text!r}"
        )
    return Split(match["name"], match["start"], match["stop"])


def _bound(text: str | None, count: int, *, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    if value < 0:
        value += count
    return min(max(value, 0), count)
