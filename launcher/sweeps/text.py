"""A sweep's state and report for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from launcher.sweeps import words
from launcher.sweeps.grid import label
from launcher.sweeps.report import EMULATED, Series, SweepReport
from launcher.sweeps.state import PointState


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
