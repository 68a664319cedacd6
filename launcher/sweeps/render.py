"""A sweep's report as one self-contained HTML page, and as a piece for notebooks.

A sweep's state and report for the terminal.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from html import escape

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from submitrain.html.charts import Series as Line
from submitrain.html.charts import line_chart
from submitrain.html.page import details, page, scoped, section, table
from submitrain.launcher.sweeps import words
from submitrain.launcher.sweeps.folder import PointState
from submitrain.launcher.sweeps.report import EMULATED, PointReport, Series, SweepReport
from submitrain.launcher.sweeps.request import label
from submitrain.launcher.sweeps.scaling import LEAST_EFFICIENCY, Curve, Estimate, NodeCount


def report_parts(report: SweepReport) -> Iterator[RenderableType]:
    """What is printed, one after the other."""
    yield Text(words.headline(report), style="dim")
    if report.record["price"] is not None:
        yield Text(f"price: {words.asked_price(report)}", style="dim")
    if report.emulated:
        yield Text(f"{EMULATED}: {report.emulated}", style="bold yellow")
    if report.scaling:
        for series in report.series:
            yield ""
            yield from _scaling_parts(report, series)
    if report.record["grid"]:
        yield ""
        yield _grid_table(report)
    for line in [*report.record["notes"], *words.unused(report.series)]:
        yield Text(f"note: {line}")


def _scaling_parts(report: SweepReport, series: Series) -> Iterator[RenderableType]:
    if series.label:
        yield Text(series.label, style="bold")
    if series.curve.counts:
        yield _scaling_table(report, series)
        if goal := words.goal(report):
            yield Text(
                f"time to result: {goal}, computed from these speeds; startup and saves are in it, "
                "the queue is not",
                style="dim",
            )
    if series.curve.fit is not None:
        shrinking_s, fixed_s = series.curve.fit
        yield Text(
            f"fitted, not measured: step = {shrinking_s:.3g} s / nodes + {fixed_s:.3g} s",
            style="dim",
        )
    yield Text(words.recommendation(report, series), style="bold")
    found = series.curve.recommendation
    for line in found.why if found.nodes is not None else ():
        yield Text(f"  {line}")


def _scaling_table(report: SweepReport, series: Series) -> Table:
    table = _table()
    names = ["nodes", "repeats", "tokens/s", "step s", "efficiency", "marginal"]
    priced = report.record["price"] is not None
    names += [words.price_unit(report)] if priced else []
    names += ["time to result"] if words.goal(report) else []
    names += ["startup", "queue", "a save costs", "of the time", "trouble"]
    for name in names:
        table.add_column(name, justify="left" if name == "trouble" else "right")
    for one in series.curve.counts:
        cells = [
            str(one.nodes),
            str(one.repeats),
            words.amount(one.tokens_per_s),
            words.amount(one.step_s),
            words.amount(one.efficiency, 2),
            words.amount(one.marginal, 2),
        ]
        cells += [words.amount(one.price_per_million_tokens)] if priced else []
        if words.goal(report):
            time = one.time_to_result_s
            cells.append(words.duration(time.value if time else None))
        cells += [
            words.duration(one.startup_s),
            words.duration(one.wait_s),
            words.duration(one.save_cost_s),
            words.share(one.save_share),
            words.reliability(series, one),
        ]
        table.add_row(*cells)
    return table


def _grid_table(report: SweepReport) -> Table:
    """One line for every run: a grid is about what came of each."""
    keys = list(report.record["grid"])
    table = _table()
    for name in [*keys, "nodes", "repeat", "state", "loss", "validation loss", "tokens/s"]:
        table.add_column(name)
    for series in report.series:
        for one in series.points:
            found = one.measurement
            speed = found.timing.tokens_per_s if found and not one.unused else None
            table.add_row(
                *(value for _, value in one.point.combination),
                str(one.point.nodes),
                str(one.point.repeat),
                one.state.word,
                _number(one.loss, "{:.4f}"),
                _number(found.validation_loss if found else None, "{:.4f}"),
                _number(speed, "{:,.0f}"),
            )
    return table


def status_table(states: Sequence[PointState]) -> Table:
    """One line for every point, in the order in which they run."""
    table = _table()
    for name in ("point", "grid", "nodes", "state", "step", "tries", "job", "why"):
        table.add_column(name, overflow="fold")
    for one in states:
        status = one.status
        total = f"/{status.total_steps}" if status and status.total_steps else ""
        finished = status is None or one.finished
        table.add_row(
            one.point.id,
            label(one.point.combination),
            str(one.point.nodes),
            one.word,
            f"{status.step}{total}" if status else "",
            str(len(one.folders)) if one.folders else "",
            status.job_ids[-1] if status and status.job_ids else "",
            "" if finished or status is None else status.why,
        )
    return table


def _table() -> Table:
    return Table(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))


def _number(value: float | None, form: str) -> str:
    return words.NOT_MEASURED if value is None else form.format(value)


_MOST_LOSS_CURVES = 10


def sweep_page(report: SweepReport) -> str:
    """The whole page."""
    return page(f"Sweep of {report.record['name']}", _body(report))


def fragment(report: SweepReport) -> str:
    """The same inside another page; its styles touch nothing else."""
    return scoped(_body(report))


def _body(report: SweepReport) -> Iterator[str]:
    record = report.record
    yield f"<h1>Sweep of <code>{escape(str(record['name']))}</code></h1>"
    began = time.strftime("%Y-%m-%d %H:%M", time.gmtime(record["created_at"]))
    yield f'<p class="faint">{began} UTC, {escape(words.headline(report))}; {report.state}.</p>'
    if report.emulated:
        yield (
            f'<p class="verdict"><b class="warn">{escape(EMULATED)}</b>: '
            f"{escape(report.emulated)}. These numbers show that the sweep works, and say nothing "
            "of a cluster whose nodes are machines of their own.</p>"
        )
    if report.scaling:
        for series in report.series:
            yield from _scaling(report, series)
    if record["grid"]:
        yield _grid(report)
    yield _runs(report)
    yield _notes(report)


def _scaling(report: SweepReport, series: Series) -> Iterator[str]:
    yield f"<h2>{escape(series.label or 'Scaling')}</h2>"
    found = series.curve.recommendation
    kind = "good" if found.nodes is not None and not report.emulated else ""
    yield f'<p class="verdict {kind}">{escape(words.recommendation(report, series))}</p>'
    if found.nodes is not None:
        yield "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in found.why) + "</ul>"
    if not series.curve.counts:
        return
    yield _speed_table(report, series)
    yield "<h3>Tokens per second</h3>"
    yield _speed_chart(series.curve)
    if series.curve.fit is not None:
        shrinking_s, fixed_s = series.curve.fit
        yield (
            f'<p class="faint">Fitted to these points, not measured: a step takes '
            f"{shrinking_s:.3g} s / nodes + {fixed_s:.3g} s.</p>"
        )
    if len(series.curve.counts) > 1:
        yield "<h3>Efficiency and marginal gain</h3>"
        yield _efficiency_chart(series.curve)
    if report.record["price"] is not None:
        yield f"<h3>Price ({escape(words.asked_price(report))})</h3>"
        yield _price_chart(report, series.curve)
    yield "<h3>Time</h3>"
    yield _time_table(report, series)


def _speed_table(report: SweepReport, series: Series) -> str:
    priced = report.record["price"] is not None
    header = ["nodes", "repeats", "tokens/s", "step (s)", "efficiency", "marginal gain"]
    header += [words.price_unit(report)] if priced else []
    rows = [
        [
            _nodes(one, series),
            str(one.repeats),
            words.amount(one.tokens_per_s),
            words.amount(one.step_s),
            words.amount(one.efficiency, 2),
            words.amount(one.marginal, 2),
            *([words.amount(one.price_per_million_tokens)] if priced else []),
        ]
        for one in series.curve.counts
    ]
    return table(header, rows, numbers=list(range(len(header))))


def _time_table(report: SweepReport, series: Series) -> str:
    goal = words.goal(report)
    header = ["nodes", *(["time to result"] if goal else [])]
    header += ["startup", "in the queue", "longest", "a save costs", "of the time", "trouble"]
    rows = [
        [
            _nodes(one, series),
            *([words.duration(_value(one.time_to_result_s))] if goal else []),
            words.duration(one.startup_s),
            words.duration(one.wait_s),
            words.duration(one.longest_wait_s),
            words.duration(one.save_cost_s),
            words.share(one.save_share),
            escape(words.reliability(series, one)),
        ]
        for one in series.curve.counts
    ]
    text = (
        f'<p class="faint">Time to result: {escape(goal)}, computed from these speeds; startup and '
        "saves are in it, the queue is not. Of the time: at the configured interval of saves.</p>"
    )
    numbers = list(range(len(header) - 1))
    return table(header, rows, numbers=numbers) + (text if goal else "")


def _nodes(one: NodeCount, series: Series) -> str:
    recommended = one.nodes == series.curve.recommendation.nodes
    return f"<b>{one.nodes}</b>" if recommended else str(one.nodes)


def _value(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _speed_chart(curve: Curve) -> str:
    base = curve.counts[0]
    each = base.tokens_per_s.value / base.nodes
    ideal = [(float(one.nodes), each * one.nodes) for one in curve.counts]
    lines = [
        _line("measured, with 95% interval", [(c.nodes, c.tokens_per_s) for c in curve.counts], 0)
    ]
    if len(curve.counts) > 1:
        lines.append(Line(f"{base.nodes} node(s) in proportion", ideal, 8, dash=1))
    return line_chart(
        lines,
        x_label="nodes",
        y_label="tokens/s",
        title="Tokens per second by nodes",
        y_from_zero=True,
    )


def _efficiency_chart(curve: Curve) -> str:
    least = [(float(curve.counts[end].nodes), LEAST_EFFICIENCY) for end in (0, -1)]
    marginal = [(c.nodes, c.marginal) for c in curve.counts if c.marginal is not None]
    lines = [
        _line("efficiency", [(c.nodes, c.efficiency) for c in curve.counts], 0),
        _line("marginal gain", marginal, 1, dash=2),
        Line(f"least efficiency {LEAST_EFFICIENCY:.2f}", least, 8, dash=1),
    ]
    return line_chart(
        lines,
        x_label="nodes",
        y_label="share of what the smallest does",
        title="Efficiency and marginal gain by nodes",
        y_from_zero=True,
    )


def _price_chart(report: SweepReport, curve: Curve) -> str:
    prices = [
        (c.nodes, c.price_per_million_tokens)
        for c in curve.counts
        if c.price_per_million_tokens is not None
    ]
    return line_chart(
        [_line(words.price_unit(report), prices, 2)],
        x_label="nodes",
        y_label=words.price_unit(report),
        title="Price of a million tokens by nodes",
        y_from_zero=True,
    )


def _line(name: str, found: list[tuple[int, Estimate]], color: int, dash: int = 0) -> Line:
    return Line(
        name,
        [(float(nodes), one.value) for nodes, one in found],
        color,
        dash=dash,
        marks=[(float(n), e.value, f"{n} nodes: {words.amount(e)}") for n, e in found],
        spans=[
            (float(nodes), one.low, one.high)
            for nodes, one in found
            if one.low is not None and one.high is not None
        ],
    )


def _grid(report: SweepReport) -> str:
    keys = list(report.record["grid"])
    header = [*keys, "nodes", "repeat", "state", "loss", "validation loss", "tokens/s"]
    rows = []
    for series in report.series:
        for one in series.points:
            found = one.measurement
            speed = found.timing.tokens_per_s if found and not one.unused else None
            rows.append(
                [
                    *(escape(value) for _, value in one.point.combination),
                    str(one.point.nodes),
                    str(one.point.repeat),
                    escape(one.state.word),
                    _number(one.loss, "{:.4f}"),
                    _number(found.validation_loss if found else None, "{:.4f}"),
                    _number(speed, "{:,.0f}"),
                ]
            )
    numbers = [len(keys), len(keys) + 1, *range(len(keys) + 3, len(header))]
    chart = _loss_chart(report)
    return section("What came of each", table(header, rows, numbers=numbers), chart)


def _loss_chart(report: SweepReport) -> str:
    """The first run of each combination; more than ten would say nothing."""
    lines = []
    for index, series in enumerate(report.series[:_MOST_LOSS_CURVES]):
        first = next((one for one in series.points if one.measurement), None)
        if first is None or first.measurement is None:
            continue
        points = [(float(step), loss) for step, loss in first.measurement.losses]
        lines.append(Line(series.label or first.point.id, points, index, dash=index))
    if not lines:
        return ""
    title = "Training loss by step"
    return f"<h3>{title}</h3>" + line_chart(
        lines, x_label="step", y_label="loss (nats per label token)", title=title
    )


def _runs(report: SweepReport) -> str:
    order = {point["id"]: number for number, point in enumerate(report.record["points"], start=1)}
    points = sorted(report.points, key=lambda one: order[one.point.id])
    header = ["#", "run", "state", "tokens/s", "timed", "startup", "queue", "restarts", "note"]
    rows = [_run_row(order[one.point.id], one) for one in points]
    body = table(header, rows, numbers=[0, 3, 4, 5, 6, 7])
    where = f'<p class="faint">Run folders: <code>{escape(report.folder)}</code></p>'
    return section("Run by run", details("In the order in which they ran", body, where, shown=True))


def _run_row(number: int, one: PointReport) -> list[str]:
    found = one.measurement
    timing = found.timing if found else None
    why = one.state.status.why if one.state.status and not one.state.finished else ""
    note = "; ".join(text for text in (why, one.unused if one.state.finished else "") if text)
    return [
        str(number),
        f"<code>{escape(one.point.id)}</code>",
        escape(one.state.word),
        _number(timing.tokens_per_s if timing else None, "{:,.0f}"),
        str(timing.steps) if timing else "",
        words.duration(timing.startup_s if timing else None),
        words.duration(found.wait_s if found else None),
        str(found.restarts) if found else "",
        escape(note),
    ]


def _notes(report: SweepReport) -> str:
    lines = [*report.record["notes"], *words.unused(report.series)]
    lines.append(
        "Tokens per second: tokens of the timed steps over the wall-clock time from step to step, "
        "on all ranks, without padding; warm-up, saves and validation are not in it. ± is half a "
        "95% confidence interval over repeats (Student's t; delta method for ratios)."
    )
    if report.scaling:
        lines.append(
            "Efficiency: tokens per second and node, relative to the smallest node count. Marginal "
            "gain: what the nodes added last bring, relative to what as many bring there."
        )
    return section("Notes", "<ul>" + "".join(f"<li>{escape(x)}</li>" for x in lines) + "</ul>")
