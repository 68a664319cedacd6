"""A sweep's report for the terminal, for the browser and for notebooks; each table stands once."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

from markupsafe import Markup
from rich.console import RenderableType
from rich.text import Text

from submitrain.html.charts import Series as Line
from submitrain.html.charts import line_chart
from submitrain.html.table import Cell, Row, Table
from submitrain.html.templates import notebook_box, page
from submitrain.launcher.sweeps.folder import PointState, SweepState
from submitrain.launcher.sweeps.report import EMULATED, Series, SweepReport
from submitrain.launcher.sweeps.request import label
from submitrain.launcher.sweeps.scaling import (
    LEAST_EFFICIENCY,
    LEAST_MARGINAL,
    Curve,
    Estimate,
    NodeCount,
)
from submitrain.text import counted, duration

NOT_MEASURED = "–"
TEMPLATE = "launcher/sweeps/report.html.j2"
_MOST_LOSS_CURVES = 10
_SPEED = ("repeats", "tokens/s", "step (s)", "efficiency", "marginal gain")
_LONGEST = "longest in queue"


def report_parts(report: SweepReport) -> Iterator[RenderableType]:
    """What is printed, one after the other."""
    yield Text(_headline(report), style="dim")
    if report.record["price"] is not None:
        yield Text(f"price: {_asked_price(report)}", style="dim")
    if report.emulated:
        yield Text(f"{EMULATED}: {report.emulated}", style="bold yellow")
    for series in report.series if report.scaling else ():
        yield ""
        if series.label:
            yield Text(series.label, style="bold")
        if series.curve.counts:
            yield _scaling_table(report, series).without(_LONGEST).on_terminal()
            if goal := _goal(report):
                yield Text(goal, style="dim")
        if fit := _fit(series.curve):
            yield Text(fit, style="dim")
        yield Text(_recommendation(report, series), style="bold")
        if series.curve.recommended is not None:
            yield from (Text(f"  {line}") for line in series.curve.why)
    if report.record["grid"]:
        yield ""
        yield _grid_table(report).on_terminal()
    yield from (Text(f"note: {line}") for line in _notes(report))


def status_table(states: Sequence[PointState]) -> Table:
    """One line for every point, in the order in which they run."""
    rows = []
    for one in states:
        status = one.status
        total = f"/{status.total_steps}" if status and status.total_steps else ""
        rows.append(
            {
                "point": one.point.id,
                "grid": label(one.point.combination),
                "nodes": str(one.point.nodes),
                "state": one.word,
                "step": f"{status.step}{total}" if status else "",
                "tries": str(len(one.folders)) if one.folders else "",
                "job": status.job_ids[-1] if status and status.job_ids else "",
                "why": status.why if status and not one.finished else "",
            }
        )
    return Table.of(rows)


def sweep_page(report: SweepReport) -> str:
    """The whole page."""
    return page(f"Sweep of {report.record['name']}", TEMPLATE, **_values(report))


def notebook_report(report: SweepReport) -> str:
    """The same in a notebook."""
    return notebook_box(TEMPLATE, width_px=1080, **_values(report))


def _values(report: SweepReport) -> dict[str, Any]:
    """What the template shows."""
    gridded = bool(report.record["grid"])
    return {
        "report": report,
        "record": report.record,
        "headline": _headline(report),
        "emulated": EMULATED,
        "scalings": [_scaling(report, series) for series in report.series if report.scaling],
        "grid": _grid_table(report) if gridded else None,
        "losses": _loss_chart(report) if gridded else "",
        "runs": _runs_table(report),
        "notes": _notes(report),
    }


def _scaling(report: SweepReport, series: Series) -> dict[str, Any]:
    """One configuration over node counts; without tables and charts where nothing was measured."""
    curve = series.curve
    values: dict[str, Any] = {
        "title": series.label or "Scaling",
        "good": curve.recommended is not None and not report.emulated,
        "recommendation": _recommendation(report, series),
        "reasons": curve.why if curve.recommended is not None else (),
        "measured": bool(curve.counts),
    }
    if not curve.counts:
        return values
    whole = _scaling_table(report, series)
    price = _price_unit(report)
    times = [name for name in whole.columns if name not in ("nodes", *_SPEED, price)]
    first, each = curve.counts[0].nodes, curve.counts[0].tokens_per_s.value / curve.counts[0].nodes
    speeds = [_line("measured, with 95% interval", _by_nodes(curve, "tokens_per_s"), 0)]
    least = [(float(one.nodes), LEAST_EFFICIENCY) for one in (curve.counts[0], curve.counts[-1])]
    shares = [
        _line("efficiency", _by_nodes(curve, "efficiency"), 0),
        _line("marginal gain", _by_nodes(curve, "marginal"), 1, dash=2),
        Line(f"least efficiency {LEAST_EFFICIENCY:.2f}", least, 8, dash=1),
    ]
    charts = [("Tokens per second", "tokens/s", speeds)]
    if len(curve.counts) > 1:
        ideal = [(float(one.nodes), each * one.nodes) for one in curve.counts]
        speeds.append(Line(f"{first} node(s) in proportion", ideal, 8, dash=1))
        charts.append(("Efficiency and marginal gain", "share of what the smallest does", shares))
    if report.record["price"] is not None:
        prices = _line(price, _by_nodes(curve, "price_per_million_tokens"), 2)
        charts.append((f"Price ({_asked_price(report)})", price, [prices]))
    return {
        **values,
        "speed": whole.without(*times),
        "charts": [(title, _node_chart(title, unit, lines)) for title, unit, lines in charts],
        "fit": _fit(curve),
        "time": whole.without(*_SPEED, price),
        "goal": _goal(report),
    }


def _node_chart(title: str, unit: str, lines: Sequence[Line]) -> Markup:
    name = f"{title} by nodes"
    return line_chart(lines, x_label="nodes", y_label=unit, title=name, y_from_zero=True)


def _scaling_table(report: SweepReport, series: Series) -> Table:
    priced, goal = report.record["price"] is not None, _goal(report)
    rows: list[Row] = []
    for one in series.curve.counts:
        recommended = one.nodes == series.curve.recommended
        result_s = one.time_to_result_s
        rows.append(
            {
                "nodes": Cell(str(one.nodes), "strong" if recommended else ""),
                "repeats": str(one.repeats),
                "tokens/s": amount(one.tokens_per_s),
                "step (s)": amount(one.step_s),
                "efficiency": amount(one.efficiency, 2),
                "marginal gain": amount(one.marginal, 2),
                **({_price_unit(report): amount(one.price_per_million_tokens)} if priced else {}),
                **(
                    {"time to result": _duration(result_s.value if result_s else None)}
                    if goal
                    else {}
                ),
                "startup": _duration(one.startup_s),
                "queue": _duration(one.wait_s),
                _LONGEST: _duration(one.longest_wait_s),
                "a save costs": _duration(one.save_cost_s),
                "of the time": _number(one.save_share, "{:.1%}"),
                "trouble": _trouble(series, one),
            }
        )
    return Table.of(rows, numbers=[name for name in rows[0] if name != "trouble"])


def _grid_table(report: SweepReport) -> Table:
    """One line for every run: a grid is about the result of each."""
    rows = [
        {
            **dict(one.point.combination),
            "nodes": str(one.point.nodes),
            "repeat": str(one.point.repeat),
            "state": one.state.word,
            "loss": _number(one.loss, "{:.4f}"),
            "validation loss": _number(one.measured.validation_loss, "{:.4f}"),
            "tokens/s": _number(None if one.unused else one.measured.tokens_per_s, "{:,.0f}"),
        }
        for series in report.series
        for one in series.points
    ]
    return Table.of(rows, numbers=("nodes", "repeat", "loss", "validation loss", "tokens/s"))


def _runs_table(report: SweepReport) -> Table:
    """All runs in the order in which they ran."""
    order = {point["id"]: number for number, point in enumerate(report.record["points"], start=1)}
    rows: list[Row] = []
    for one in sorted(report.points, key=lambda one: order[one.point.id]):
        found, started = one.measured, one.state.folder is not None
        why = one.state.status.why if one.state.status and not one.state.finished else ""
        unused = one.unused if one.state.finished else ""
        rows.append(
            {
                "#": str(order[one.point.id]),
                "run": Cell(one.point.id, "code"),
                "state": one.state.word,
                "tokens/s": _number(found.tokens_per_s, "{:,.0f}"),
                "timed": str(found.steps) if started else "",
                "startup": _duration(found.startup_s),
                "queue": _duration(found.wait_s),
                "restarts": str(found.restarts) if started else "",
                "note": "; ".join(text for text in (why, unused) if text),
            }
        )
    numbers = ("#", "tokens/s", "timed", "startup", "queue", "restarts")
    return Table.of(rows, numbers=numbers)


def _loss_chart(report: SweepReport) -> Markup:
    """The first run of each combination; more than ten would say nothing."""
    lines = []
    for index, series in enumerate(report.series[:_MOST_LOSS_CURVES]):
        first = next((one for one in series.points if one.state.folder), None)
        if first is not None:
            points = [(float(step), loss) for step, loss in first.measured.losses]
            lines.append(Line(series.label or first.point.id, points, index, dash=index))
    return line_chart(
        lines, x_label="step", y_label="loss (nats per label token)", title="Training loss by step"
    )


def _by_nodes(curve: Curve, name: str) -> list[tuple[int, Estimate]]:
    return [(one.nodes, found) for one in curve.counts if (found := getattr(one, name)) is not None]


def _line(name: str, found: Sequence[tuple[int, Estimate]], color: int, dash: int = 0) -> Line:
    return Line(
        name,
        [(float(nodes), one.value) for nodes, one in found],
        color,
        dash=dash,
        marks=[(float(n), e.value, f"{n} nodes: {amount(e)}") for n, e in found],
        spans=[
            (float(nodes), one.low, one.high)
            for nodes, one in found
            if one.low is not None and one.high is not None
        ],
    )


def amount(estimate: Estimate | None, digits: int | None = None) -> str:
    """``1,234 ± 12``, ``1.86 (0.94 to 13.00)``; three digits unless ``digits`` is given."""
    if estimate is None:
        return NOT_MEASURED
    value, low, high = estimate.value, estimate.low, estimate.high
    if digits is None:
        size = math.floor(math.log10(abs(value))) if value else 0
        digits = min(6, max(0, 2 - size))
    text = f"{round(value, digits) + 0.0:,.{digits}f}"  # + 0.0: no minus before a zero
    if low is None or high is None or low == value == high:
        return text
    below, above = value - low, high - value
    if abs(above - below) > 0.2 * above:
        return f"{text} ({low:,.{digits}f} to {high:,.{digits}f})"
    return f"{text} ± {above:,.{digits}f}"


def _duration(seconds: float | None) -> str:
    return duration(seconds, unknown=NOT_MEASURED)


def _number(value: float | None, form: str) -> str:
    return NOT_MEASURED if value is None else form.format(value)


def _trouble(series: Series, one: NodeCount) -> str:
    """``no trouble``, ``1 restart, 1 failed run``"""
    found = ((one.restarts, "restart"), (series.failures(one.nodes), "failed run"))
    return ", ".join(counted(n, word) for n, word in found if n) or "no trouble"


def _recommendation(report: SweepReport, series: Series) -> str:
    curve = series.curve
    if curve.recommended is None:
        text = f"no recommendation: {curve.why[0]}"
    else:
        text = (
            f"take {counted(curve.recommended, 'node')}, the largest measured one "
            f"whose efficiency is at least {LEAST_EFFICIENCY:.2f} and whose marginal gain is at "
            f"least {LEAST_MARGINAL:.2f}, both by the lower end of their 95% intervals"
        )
    if report.emulated:
        text = f"{EMULATED}: {text}"
    if report.state is not SweepState.FINISHED:
        text = f"not complete yet: {text}"
    return f"{text[0].upper()}{text[1:]}."


def _headline(report: SweepReport) -> str:
    """What was measured, in one line."""
    record = report.record
    parts = [f"on {record['cluster']}"]
    if report.scaling:
        what = "fixed global batch" if record["mode"] == "strong" else "fixed local batch"
        parts.append(f"{record['mode']} scaling ({what})")
        parts.append(f"{record['warmup_steps']} warm-up and {record['timed_steps']} timed steps")
    repeats = record["repeats"]
    parts.append(f"{counted(repeats, 'repeat')} in random order")
    return ", ".join(parts)


def _goal(report: SweepReport) -> str:
    """What the time to result is the time of; empty without a length of the training."""
    wanted = report.record["goal"]
    if wanted["tokens"]:
        text = f"{wanted['tokens']:,.0f} tokens"
    elif wanted["steps"]:
        text = f"{wanted['steps']:,} steps of {wanted['global_batch']} sequences"
    else:
        return ""
    return (
        f"time to result: {text}, computed from these speeds; startup and saves are in it, the "
        "queue is not"
    )


def _fit(curve: Curve) -> str:
    if curve.fit is None:
        return ""
    return f"fitted, not measured: step = {curve.fit[0]:.3g} s / nodes + {curve.fit[1]:.3g} s"


def _asked_price(report: SweepReport) -> str:
    """``2.1 EUR per GPU and hour``"""
    paid = f"{report.record['price']:g} {report.record['currency']}".strip()
    return f"{paid} per {report.unit} and hour"


def _price_unit(report: SweepReport) -> str:
    """``EUR per million tokens``"""
    return f"{report.record['currency'] or 'price'} per million tokens"


def _notes(report: SweepReport) -> list[str]:
    """Notes of the plan, and points whose speed is not counted though they finished."""
    points = [one for one in report.points if one.unused and one.state.finished]
    return [*report.record["notes"], *(f"{one.point.id}: {one.unused}" for one in points)]
