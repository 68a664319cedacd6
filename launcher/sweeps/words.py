"""How numbers of a sweep are written, on the terminal and on the page. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence

from submitrain.launcher.sweeps.folder import SweepState
from submitrain.launcher.sweeps.report import EMULATED, Series, SweepReport
from submitrain.launcher.sweeps.scaling import LEAST_EFFICIENCY, LEAST_MARGINAL, Estimate, NodeCount

NOT_MEASURED = "–"


def amount(estimate: Estimate | None, digits: int | None = None) -> str:
    """``1,234 ± 12``, ``1.86 (0.94 to 13.00)``; three digits unless ``digits`` is given."""
    if estimate is None:
        return NOT_MEASURED
    value = estimate.value
    if digits is None:
        size = math.floor(math.log10(abs(value))) if value else 0
        digits = min(6, max(0, 2 - size))
    text = f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero
    if estimate.low is None or estimate.high is None:
        return text
    below, above = estimate.value - estimate.low, estimate.high - estimate.value
    if not below and not above:
        return text
    if abs(above - below) > 0.2 * above:
        return f"{text} ({estimate.low:,.{digits}f} to {estimate.high:,.{digits}f})"
    return f"{text} ± {above:,.{digits}f}"


def duration(seconds: float | None) -> str:
    """``3 d 4 h``, ``2 h 05 min``, ``4 min 07 s``, ``12.3 s``"""
    if seconds is None:
        return NOT_MEASURED
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def share(value: float | None) -> str:
    """``1.2%``"""
    return NOT_MEASURED if value is None else f"{100 * value:.1f}%"


def reliability(series: Series, one: NodeCount) -> str:
    """``no trouble``, ``1 restart, 1 failed run``"""
    found = ((one.restarts, "restart"), (series.failures(one.nodes), "failed run"))
    words = [f"{n} {word}{'s' if n > 1 else ''}" for n, word in found if n]
    return ", ".join(words) or "no trouble"


def recommendation(report: SweepReport, series: Series) -> str:
    """The verdict in one sentence."""
    found = series.curve.recommendation
    if found.nodes is None:
        text = f"no recommendation: {found.why[0]}"
    else:
        text = f"take {nodes_text(found.nodes)}, {rule()}"
    if report.emulated:
        text = f"{EMULATED}: {text}"
    if report.state is not SweepState.FINISHED:
        text = f"not complete yet: {text}"
    return f"{text[0].upper()}{text[1:]}."


def rule() -> str:
    """What a recommended node count fulfils."""
    return (
        "the largest measured one whose efficiency is at least "
        f"{LEAST_EFFICIENCY:.2f} and whose marginal gain is at least {LEAST_MARGINAL:.2f}, both by "
        "the lower end of their 95% intervals"
    )


def nodes_text(nodes: int) -> str:
    """``1 node``"""
    return f"{nodes} node{'s' if nodes > 1 else ''}"


def headline(report: SweepReport) -> str:
    """What was measured, in one line."""
    record = report.record
    parts = [f"on {record['cluster']}"]
    if report.scaling:
        what = "fixed global batch" if record["mode"] == "strong" else "fixed local batch"
        parts.append(f"{record['mode']} scaling ({what})")
        parts.append(f"{record['warmup_steps']} warm-up and {record['timed_steps']} timed steps")
    repeats = record["repeats"]
    parts.append(f"{repeats} repeat{'s' if repeats > 1 else ''} in random order")
    return ", ".join(parts)


def goal(report: SweepReport) -> str:
    """Of what the time to result is the time."""
    wanted = report.record["goal"]
    if wanted["tokens"]:
        return f"{wanted['tokens']:,.0f} tokens"
    if wanted["steps"]:
        return f"{wanted['steps']:,} steps of {wanted['global_batch']} sequences"
    return ""


def asked_price(report: SweepReport) -> str:
    """``2.1 EUR per GPU and hour``"""
    amount_text = f"{report.record['price']:g} {report.record['currency']}".strip()
    return f"{amount_text} per {report.unit} and hour"


def price_unit(report: SweepReport) -> str:
    """``EUR per million tokens``"""
    return f"{report.record['currency'] or 'price'} per million tokens"


def unused(series: Sequence[Series]) -> list[str]:
    """Points whose speed is not counted though they finished, and why."""
    return [
        f"{point.point.id}: {point.unused}"
        for one in series
        for point in one.points
        if point.unused and point.state.finished
    ]
