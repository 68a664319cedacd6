"""A drill's report for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from launcher.drill.report import Report
from launcher.drill.scenarios import Place, Scenario
from launcher.drill.verdict import Outcome
from monitor.recovery import PARTS, Recovery


def catalogue_table(scenarios: Sequence[Scenario], place: Place) -> Table:
    """All faults: what they do, what they need, and whether this place allows them."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("fault", "what happens", "needs", f"here ({place.cluster})"):
        table.add_column(name, overflow="fold")
    for one in scenarios:
        reason = one.why_not(place)
        here = f"no: {reason}" if reason else "yes" if one.default(place) else "when asked for"
        table.add_row(one.id, one.what, one.needs, here)
    return table


def report_parts(report: Report) -> Iterator[RenderableType]:
    """What is printed, one after the other."""
    yield ""
    yield _overview(report.outcomes)
    if any(outcome.recoveries for outcome in report.outcomes):
        yield ""
        yield _times(report.outcomes)
    for outcome in report.outcomes:
        if not outcome.ok:
            yield ""
            yield Text(f"{outcome.id}: {outcome.verdict}", style="red")
            if outcome.advice:
                yield Text(f"  {outcome.advice}")
    yield ""
    yield Text(report.sentence, style="bold green" if report.ok else "bold red")


def _overview(outcomes: Sequence[Outcome]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("", "fault", "struck", "taken for", "then", "recovery", "lost steps", "curve"):
        table.add_column(name, overflow="fold")
    for one in outcomes:
        table.add_row(
            Text("✓", style="green") if one.ok else Text("✗", style="red"),
            one.id,
            struck(one),
            one.cause,
            one.action,
            "" if one.recovery_s is None else f"{one.recovery_s:.1f} s",
            str(one.lost_steps) if one.recoveries else "",
            curve(one),
        )
    return table


def struck(outcome: Outcome) -> str:
    """``step 13, rank 1 on node2``"""
    return "; ".join(
        f"step {one.step}"
        + ("" if one.rank is None else f", rank {one.rank}")
        + (f" on {one.host}" if one.host else "")
        for one in outcome.injections
    )


def curve(outcome: Outcome) -> str:
    """How the curve compares; of a run that did not finish, how it ended."""
    if outcome.state != "finished":
        return outcome.state
    return "" if outcome.comparison is None else outcome.comparison.text


def longest(outcome: Outcome) -> Recovery | None:
    """The recovery that took longest."""
    return max(outcome.recoveries, key=lambda one: one.total_s, default=None)


def _times(outcomes: Sequence[Outcome]) -> Table:
    """Where the time of each longest recovery went, in seconds."""
    columns = [(one.id, found) for one in outcomes if (found := longest(one)) is not None]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("seconds", no_wrap=True)
    for name, _ in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for part in PARTS:
        cells = [f"{one.seconds[part]:.2f}" if part in one.seconds else "" for _, one in columns]
        if any(cells):
            table.add_row(part.replace("_", " "), *cells)
    table.add_row("together", *[f"{one.total_s:.2f}" for _, one in columns], style="bold")
    return table
