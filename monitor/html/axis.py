"""Ticks at round numbers. Pure."""

from __future__ import annotations

import math


def ticks(low: float, high: float, *, about: int = 6, whole: bool = False) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``about`` of them.

    ``whole`` asks for whole numbers: steps, ranks, nodes.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / max(1, about - 1), whole=whole)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _round_step(raw: float, *, whole: bool) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    if whole:
        steps = [step for step in steps if step == int(step)] or [1.0]
    return next((step for step in steps if step >= raw * 0.999), steps[-1])


def tick_text(value: float) -> str:
    """A number without needless digits."""
    return f"{value:.10g}"
