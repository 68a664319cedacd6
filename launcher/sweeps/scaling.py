"""How training scales over nodes: efficiency, price, and the node count to take. Pure.

N nodes do T(N) tokens per second; N0 is the smallest N that was measured.

A mean of R repeats has Student's 95% interval with R - 1 degrees of freedom; a function of several
means has the first-order (delta) variance, with Welch-Satterthwaite degrees of freedom
(doi:10.1093/biomet/34.1-2.28). One repeat has no interval, and nothing that needs it has one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from submitrain.launcher.sweeps.measure import Measurement

Mode = Literal["strong", "weak"]
LEAST_EFFICIENCY = 0.90
LEAST_MARGINAL = 0.70
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
        bounds = (None if one is None else one + constant for one in (self.low, self.high))
        return Estimate(self.value + constant, *bounds)


@dataclass(frozen=True)
class Mean:
    """A mean of repeats, with the variance of that mean."""

    value: float
    variance: float | None
    """None with a single repeat."""
    freedom: float

    @property
    def estimate(self) -> Estimate:
        """With its interval; of something that cannot be negative."""
        return propagated(self.value, [(1.0, self)], least=0.0)


def mean_of(values: Iterable[float | None]) -> Mean:
    """The mean of at least one value that was measured."""
    known = [one for one in values if one is not None]
    variance = statistics.variance(known) / len(known) if len(known) > 1 else None
    return Mean(statistics.fmean(known), variance, len(known) - 1)


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


@dataclass(frozen=True)
class Terms:
    """What a curve is judged by, besides what was measured; see ``docs/sweeps.md``."""

    mode: Mode
    global_batches: Mapping[int, int] = field(default_factory=dict)
    """Sequences of a step, by nodes."""
    tokens: float | None = None
    """Length of the training whose duration is to be told: so many, or what ``steps`` make."""
    steps: int | None = None
    global_batch: int = 1
    """Sequences of one of these steps."""
    save_every_steps: int | None = None
    price: float | None = None
    """Of a unit (GPU, or rank where there are none) for an hour."""
    units_per_node: int = 1


@dataclass(frozen=True)
class NodeCount:
    """What one node count came to; None = not measured, or not asked for."""

    nodes: int
    repeats: int
    tokens_per_s: Estimate
    step_s: Estimate
    efficiency: Estimate
    marginal: Estimate | None
    price_per_million_tokens: Estimate | None
    time_to_result_s: Estimate | None
    startup_s: float | None
    wait_s: float | None
    """Median of the repeats."""
    longest_wait_s: float | None
    restarts: int
    save_cost_s: float | None
    save_share: float | None
    """Share of the time that saves at the configured interval take."""


@dataclass(frozen=True)
class Curve:
    """All node counts that were measured, in ascending order, and the one to take."""

    counts: tuple[NodeCount, ...]
    recommended: int | None
    """None where there is not enough to tell."""
    why: tuple[str, ...]
    fit: tuple[float, float] | None
    """Seconds of a step that shrink with the nodes (at one node), and that do not; strong only."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        fit = None if self.fit is None else {"shrinking_s": self.fit[0], "fixed_s": self.fit[1]}
        return {
            "counts": [asdict(one) for one in self.counts],
            "recommendation": {"nodes": self.recommended, "why": list(self.why)},
            "fit": fit,
        }


def curve_of(repeats: Mapping[int, Sequence[Measurement]], terms: Terms) -> Curve:
    """Judge all repeats, by nodes; node counts without a repeat are left out."""
    measured = {nodes: runs for nodes, runs in sorted(repeats.items()) if runs}
    speeds = {nodes: mean_of(one.tokens_per_s for one in runs) for nodes, runs in measured.items()}
    counts = tuple(_count(nodes, runs, speeds, terms) for nodes, runs in measured.items())
    recommended, why = _recommend(counts)
    points = [(one.nodes, one.step_s.value) for one in counts]
    return Curve(
        counts, recommended, why, fit_step_time(points) if terms.mode == "strong" else None
    )


def _count(
    nodes: int, runs: Sequence[Measurement], speeds: Mapping[int, Mean], terms: Terms
) -> NodeCount:
    speed = speeds[nodes].estimate
    waits = [one.wait_s for one in runs if one.wait_s is not None]
    save_s = _median(one.saves.cost_s if one.saves else None for one in runs)
    startup_s = _median(one.startup_s for one in runs)
    step_s = mean_of(one.step_s for one in runs).estimate
    price, share, every = None, None, terms.save_every_steps
    if terms.price is not None:
        # N g price 1e6 / (3600 T), g units in each node.
        price = speed.inverse(nodes * terms.units_per_node * terms.price * 1e6 / 3600)
    if save_s is not None and every is not None:
        share = save_s / (every * step_s.value + save_s)
    return NodeCount(
        nodes=nodes,
        repeats=len(runs),
        tokens_per_s=speed,
        step_s=step_s,
        efficiency=efficiency(nodes, speeds),
        marginal=marginal(nodes, speeds),
        price_per_million_tokens=price,
        time_to_result_s=_time_to_result(nodes, runs, speed, terms),
        startup_s=startup_s,
        wait_s=_median(waits),
        longest_wait_s=max(waits, default=None),
        restarts=sum(one.restarts for one in runs),
        save_cost_s=save_s,
        save_share=share,
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [one for one in values if one is not None]
    return statistics.median(known) if known else None


def efficiency(nodes: int, speeds: Mapping[int, Mean]) -> Estimate:
    """``(T(N)/N) / (T(N0)/N0)``; 1 at the smallest node count by definition.

    With a fixed local batch this is Gustafson's (doi:10.1145/42411.42415); with a fixed global
    batch it equals Amdahl's ``N0 t(N0) / (N t(N))`` (doi:10.1145/1465482.1465560), since t is the
    time of as many tokens: 24 h on one node and 6 h on four are 1.00.
    """
    base = min(speeds)
    if nodes == base:
        return Estimate(1.0, 1.0, 1.0)
    value = (speeds[nodes].value / nodes) / (speeds[base].value / base)
    parts = [(value / speeds[nodes].value, speeds[nodes])]
    return propagated(value, [*parts, (-value / speeds[base].value, speeds[base])], least=0.0)


def marginal(nodes: int, speeds: Mapping[int, Mean]) -> Estimate | None:
    """``(T2 - T1) / ((N2 - N1) T(N0)/N0)``: what the nodes added last bring, as a share of what as
    many nodes bring at N0. None at the smallest node count."""
    base, before = min(speeds), max((count for count in speeds if count < nodes), default=None)
    if before is None:
        return None
    unit = (nodes - before) * speeds[base].value / base
    value = (speeds[nodes].value - speeds[before].value) / unit
    by_base = -value / speeds[base].value
    if before == base:
        return propagated(value, [(1 / unit, speeds[nodes]), (by_base - 1 / unit, speeds[base])])
    parts = [(1 / unit, speeds[nodes]), (-1 / unit, speeds[before]), (by_base, speeds[base])]
    return propagated(value, parts)


def _time_to_result(
    nodes: int, runs: Sequence[Measurement], speed: Estimate, terms: Terms
) -> Estimate | None:
    """Seconds from the start of the job: startup, tokens at this speed, and saves at the configured
    interval; the queue is not in it."""
    per_step = mean_of(one.tokens_per_step for one in runs).value
    tokens, batch = terms.tokens, terms.global_batches.get(nodes)
    if tokens is None and terms.steps is not None and batch:
        tokens = terms.steps * per_step * terms.global_batch / batch
    if tokens is None:
        return None
    startup_s = _median(one.startup_s for one in runs) or 0.0
    save_s = _median(one.saves.cost_s if one.saves else None for one in runs) or 0.0
    saves = tokens / per_step / terms.save_every_steps if terms.save_every_steps else 0.0
    return speed.inverse(tokens).plus(startup_s + saves * save_s)


def fit_step_time(points: list[tuple[int, float]]) -> tuple[float, float] | None:
    """``(c, f)`` of ``step_s = c / N + f`` by least squares of relative errors; of a strong curve.

    ``c`` shrinks with the nodes, ``f`` does not. None below three node counts (two leave no rest by
    which the fit could be doubted), or where it comes out negative.
    """
    if len({nodes for nodes, _ in points}) < 3:
        return None
    weighed = [(1 / n, seconds, seconds**-2) for n, seconds in points]
    total = sum(w for _, _, w in weighed)
    x_mean = sum(w * x for x, _, w in weighed) / total
    y_mean = sum(w * y for _, y, w in weighed) / total
    spread = sum(w * (x - x_mean) ** 2 for x, _, w in weighed)
    joint = sum(w * (x - x_mean) * (y - y_mean) for x, y, w in weighed)
    compute = joint / spread
    fixed = y_mean - compute * x_mean
    return (compute, fixed) if compute >= 0 and fixed >= 0 else None


def _recommend(counts: Sequence[NodeCount]) -> tuple[int | None, tuple[str, ...]]:
    """The knee: the largest node count whose lower bounds are good enough for both; and why."""
    if not counts:
        return None, ("nothing was measured",)
    if len(counts) == 1:
        return None, ("one node count says nothing of scaling: give --nodes more",)
    if few := [str(one.nodes) for one in counts if one.repeats < 2]:
        text = f"expected 2 repeats or more, got one for {', '.join(few)} node(s)"
        return None, (f"no intervals: {text}",)
    refusals, why = {}, []
    for one in counts:
        refusal = ""
        if not one.efficiency.at_least(LEAST_EFFICIENCY):
            refusal = f"no: efficiency may be under {LEAST_EFFICIENCY:.2f}"
        elif one.marginal is not None and not one.marginal.at_least(LEAST_MARGINAL):
            refusal = f"no: marginal gain may be under {LEAST_MARGINAL:.2f}"
        refusals[one.nodes] = refusal
        if one.marginal is None:
            why.append(f"{one.nodes}: the smallest, to which the others are compared")
        else:
            found = f"efficiency {_bounded(one.efficiency)}, marginal gain {_bounded(one.marginal)}"
            why.append(f"{one.nodes}: {found}: {refusal or 'good enough'}")
    return max(nodes for nodes, refusal in refusals.items() if not refusal), tuple(why)


def _bounded(estimate: Estimate) -> str:
    """``0.95 (at least 0.92)``"""
    value, low = round(estimate.value, 2) + 0.0, estimate.low  # + 0.0: no minus before a zero
    return f"{value:.2f}" + ("" if low is None else f" (at least {round(low, 2) + 0.0:.2f})")
