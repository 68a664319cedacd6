"""Means of repeats with 95% confidence intervals, and of numbers computed from them. Pure.

A mean of R repeats has Student's interval with R - 1 degrees of freedom; a function of several
means has the first-order (delta) variance, with Welch-Satterthwaite degrees of freedom
(doi:10.1093/biomet/34.1-2.28). One repeat has no interval, and nothing that needs it has one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

CONFIDENCE = 0.95
# fmt: off
_T_975 = (
    12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160,
    2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056,
    2.052, 2.048, 2.045, 2.042,
)
# fmt: on
"""The 0.975 quantile of Student's t with 1 to 30 degrees of freedom."""
_NORMAL_975 = 1.959964


@dataclass(frozen=True)
class Estimate:
    """A number and its 95% confidence interval; without one where nothing was repeated."""

    value: float
    low: float | None = None
    high: float | None = None

    def as_json(self) -> dict[str, float | None]:
        """Plain values."""
        return {"value": self.value, "low": self.low, "high": self.high}

    def at_least(self, bound: float) -> bool:
        """Whether the lower bound is not below ``bound``; without an interval it is not known."""
        return self.low is not None and self.low >= bound

    def inverse(self, factor: float) -> Estimate:
        """``factor / x``; exact for the interval of a positive number."""
        low = factor / self.high if self.high else None
        high = factor / self.low if self.low is not None and self.low > 0 else None
        return Estimate(factor / self.value, low, high if low is not None else None)

    def plus(self, constant: float) -> Estimate:
        """Shifted by something that is taken as known."""
        low, high = self.low, self.high
        return Estimate(
            self.value + constant,
            None if low is None else low + constant,
            None if high is None else high + constant,
        )


@dataclass(frozen=True)
class Mean:
    """A mean of repeats, with the variance of that mean."""

    value: float
    variance: float | None
    """None with a single repeat."""
    freedom: float
    repeats: int

    @property
    def estimate(self) -> Estimate:
        """With its interval; of something that cannot be negative."""
        return propagated(self.value, [(1.0, self)], least=0.0)


def mean_of(values: Sequence[float]) -> Mean:
    """The mean of at least one value."""
    repeats = len(values)
    variance = statistics.variance(values) / repeats if repeats > 1 else None
    return Mean(statistics.fmean(values), variance, repeats - 1, repeats)


def propagated(
    value: float, parts: Sequence[tuple[float, Mean]], *, least: float = -math.inf
) -> Estimate:
    """``value``, computed from independent means, with its interval.

    ``parts`` holds for each mean the derivative of ``value`` with respect to it; no interval goes
    below ``least``.
    """
    shares: list[tuple[float, float]] = []
    for gradient, mean in parts:
        if mean.variance is None:
            return Estimate(value)
        shares.append((gradient**2 * mean.variance, mean.freedom))
    variance = sum(share for share, _ in shares)
    if variance == 0:
        return Estimate(value, value, value)
    freedom = variance**2 / sum(share**2 / freedom for share, freedom in shares)
    half = t_quantile(freedom) * math.sqrt(variance)
    return Estimate(value, max(least, value - half), value + half)


def t_quantile(freedom: float) -> float:
    """The 0.975 quantile of Student's t; degrees of freedom are rounded down, to be safe."""
    whole = max(1, int(freedom + 1e-9))
    if whole <= len(_T_975):
        return _T_975[whole - 1]
    # Abramowitz and Stegun 26.7.5, first term: exact to 0.001 from 30 degrees of freedom on.
    return _NORMAL_975 + (_NORMAL_975**3 + _NORMAL_975) / (4 * whole)


def json_of(estimate: Estimate | None) -> dict[str, Any] | None:
    """For ``as_json`` of what may not have been measured."""
    return None if estimate is None else estimate.as_json()
