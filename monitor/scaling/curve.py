"""One scaling curve: all node counts of one configuration, and the node count to take. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from monitor.scaling.arithmetic import (
    fit_step_time,
    marginal_gain,
    price_per_million_tokens,
    strong_efficiency,
    weak_efficiency,
)
from monitor.scaling.estimate import Estimate, Mean, json_of, mean_of, propagated
from monitor.scaling.timing import SaveCosts

Mode = Literal["strong", "weak"]
LEAST_EFFICIENCY = 0.90
LEAST_MARGINAL = 0.70


@dataclass(frozen=True)
class Repeat:
    """One measured run; times in seconds."""

    tokens_per_s: float
    step_s: float
    tokens_per_step: float
    startup_s: float | None = None
    wait_s: float | None = None
    restarts: int = 0
    saves: SaveCosts | None = None


@dataclass(frozen=True)
class Goal:
    """The training that a curve is to tell the duration of; see ``docs/sweeps.md``."""

    tokens: float | None = None
    """So many, or what ``steps`` make."""
    steps: int | None = None
    global_batch: int = 1
    """Sequences of one of these steps."""
    save_every_steps: int | None = None


@dataclass(frozen=True)
class Terms:
    """What a curve is judged by, besides what was measured."""

    mode: Mode
    global_batches: Mapping[int, int] = field(default_factory=dict)
    """Sequences of a step, by nodes."""
    goal: Goal = Goal()
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

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        estimates = (
            *("tokens_per_s", "step_s", "efficiency", "marginal"),
            *("price_per_million_tokens", "time_to_result_s"),
        )
        plain = {name: value for name, value in vars(self).items() if name not in estimates}
        return {**plain, **{name: json_of(getattr(self, name)) for name in estimates}}


@dataclass(frozen=True)
class Recommendation:
    """The node count to take, and why; None where it cannot be said."""

    nodes: int | None
    why: tuple[str, ...]


@dataclass(frozen=True)
class Curve:
    """All node counts that were measured, in ascending order."""

    mode: Mode
    counts: tuple[NodeCount, ...]
    recommendation: Recommendation
    fit: tuple[float, float] | None
    """Seconds of a step that shrink with the nodes (at one node), and that do not; strong only."""

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        fit = None if self.fit is None else {"shrinking_s": self.fit[0], "fixed_s": self.fit[1]}
        return {
            "counts": [one.as_json() for one in self.counts],
            "recommendation": {
                "nodes": self.recommendation.nodes,
                "why": list(self.recommendation.why),
            },
            "fit": fit,
        }


def curve_of(repeats: Mapping[int, Sequence[Repeat]], terms: Terms) -> Curve:
    """Judge all repeats, by nodes; node counts without a repeat are left out."""
    measured = {nodes: runs for nodes, runs in sorted(repeats.items()) if runs}
    speeds = {
        nodes: mean_of([one.tokens_per_s for one in runs]) for nodes, runs in measured.items()
    }
    counts = tuple(_count(nodes, measured[nodes], speeds, terms) for nodes in measured)
    points = [(one.nodes, one.step_s.value) for one in counts]
    return Curve(
        mode=terms.mode,
        counts=counts,
        recommendation=recommend(counts),
        fit=fit_step_time(points) if terms.mode == "strong" else None,
    )


def _count(
    nodes: int, runs: Sequence[Repeat], speeds: Mapping[int, Mean], terms: Terms
) -> NodeCount:
    speed = speeds[nodes].estimate
    smaller = [count for count in speeds if count < nodes]
    waits = [one.wait_s for one in runs if one.wait_s is not None]
    save_s = _median([one.saves.cost_s for one in runs if one.saves is not None])
    startup_s = _median([one.startup_s for one in runs if one.startup_s is not None])
    step_s = mean_of([one.step_s for one in runs]).estimate
    return NodeCount(
        nodes=nodes,
        repeats=len(runs),
        tokens_per_s=speed,
        step_s=step_s,
        efficiency=efficiency(nodes, speeds, terms.mode),
        marginal=marginal(nodes, speeds) if smaller else None,
        price_per_million_tokens=_price(nodes, speed, terms),
        time_to_result_s=_time_to_result(nodes, runs, speed, startup_s, terms),
        startup_s=startup_s,
        wait_s=_median(waits),
        longest_wait_s=max(waits, default=None),
        restarts=sum(one.restarts for one in runs),
        save_cost_s=save_s,
        save_share=_save_share(save_s, step_s.value, terms.goal.save_every_steps),
    )


def efficiency(nodes: int, speeds: Mapping[int, Mean], mode: Mode) -> Estimate:
    """Efficiency against the smallest node count, which is 1 by definition."""
    base = min(speeds)
    if nodes == base:
        return Estimate(1.0, 1.0, 1.0)
    base_speed, speed = speeds[base], speeds[nodes]
    if mode == "strong":
        # The same tokens at both: the seconds that one million of them take.
        value = strong_efficiency(base, 1e6 / base_speed.value, nodes, 1e6 / speed.value)
    else:
        value = weak_efficiency(base, base_speed.value, nodes, speed.value)
    parts = [(value / speed.value, speed), (-value / base_speed.value, base_speed)]
    return propagated(value, parts, least=0.0)


def marginal(nodes: int, speeds: Mapping[int, Mean]) -> Estimate:
    """Marginal gain over the next smaller node count that was measured."""
    base, before = min(speeds), max(count for count in speeds if count < nodes)
    ends = [(count, speeds[count].value) for count in (base, before, nodes)]
    value = marginal_gain(*ends)
    unit = (nodes - before) * speeds[base].value / base
    by_base = -value / speeds[base].value
    if before == base:
        return propagated(value, [(1 / unit, speeds[nodes]), (by_base - 1 / unit, speeds[base])])
    parts = [(1 / unit, speeds[nodes]), (-1 / unit, speeds[before]), (by_base, speeds[base])]
    return propagated(value, parts)


def recommend(counts: Sequence[NodeCount]) -> Recommendation:
    """The knee: the largest node count whose lower bounds are good enough for both."""
    if not counts:
        return Recommendation(None, ("nothing was measured",))
    if len(counts) == 1:
        return Recommendation(None, ("one node count says nothing of scaling: give --nodes more",))
    if any(one.repeats < 2 for one in counts):
        few = ", ".join(str(one.nodes) for one in counts if one.repeats < 2)
        return Recommendation(
            None, (f"no intervals: expected 2 repeats or more, got one for {few} node(s)",)
        )
    fit = [one.nodes for one in counts if _refusal(one) is None]
    return Recommendation(max(fit), tuple(_reason(one) for one in counts))


def _refusal(one: NodeCount) -> str | None:
    """Why a node count is not good enough."""
    if not one.efficiency.at_least(LEAST_EFFICIENCY):
        return f"efficiency may be under {LEAST_EFFICIENCY:.2f}"
    if one.marginal is not None and not one.marginal.at_least(LEAST_MARGINAL):
        return f"marginal gain may be under {LEAST_MARGINAL:.2f}"
    return None


def _reason(one: NodeCount) -> str:
    if one.marginal is None:
        return f"{one.nodes}: the smallest, to which the others are compared"
    refusal = _refusal(one)
    verdict = "good enough" if refusal is None else f"no: {refusal}"
    return (
        f"{one.nodes}: efficiency {_bounded(one.efficiency)}, marginal gain "
        f"{_bounded(one.marginal)}: {verdict}"
    )


def _bounded(estimate: Estimate) -> str:
    """``0.95 (at least 0.92)``"""
    value, low = round(estimate.value, 2) + 0.0, estimate.low  # + 0.0: no minus before a zero
    return f"{value:.2f}" + ("" if low is None else f" (at least {round(low, 2) + 0.0:.2f})")


def _price(nodes: int, speed: Estimate, terms: Terms) -> Estimate | None:
    if terms.price is None:
        return None
    for_one = price_per_million_tokens(
        nodes=nodes,
        units_per_node=terms.units_per_node,
        per_unit_hour=terms.price,
        tokens_per_s=1.0,
    )
    return speed.inverse(for_one)


def _time_to_result(
    nodes: int, runs: Sequence[Repeat], speed: Estimate, startup_s: float | None, terms: Terms
) -> Estimate | None:
    """Startup, tokens at this speed, and saves at the configured interval."""
    goal = terms.goal
    per_step = statistics.fmean(one.tokens_per_step for one in runs)
    batch = terms.global_batches.get(nodes)
    tokens = goal.tokens
    if tokens is None and goal.steps is not None and batch:
        tokens = goal.steps * per_step * goal.global_batch / batch
    if tokens is None:
        return None
    save_s = _median([one.saves.cost_s for one in runs if one.saves is not None])
    saves = tokens / per_step / goal.save_every_steps if goal.save_every_steps else 0.0
    return speed.inverse(tokens).plus((startup_s or 0.0) + saves * (save_s or 0.0))


def _save_share(save_s: float | None, step_s: float, every: int | None) -> float | None:
    if save_s is None or every is None:
        return None
    return save_s / (every * step_s + save_s)


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
