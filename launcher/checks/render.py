"""Findings for people: a table for the terminal, a page for the browser."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.table import Table as TerminalTable
from rich.text import Text

from submitrain.html.table import Cell, Table
from submitrain.html.templates import page
from submitrain.launcher.checks.finding import Finding, Level, worst

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.UNKNOWN: "dim"}
_CLASSES = {Level.OK: "good", Level.WARN: "warn", Level.FAIL: "bad", Level.UNKNOWN: "faint"}
"""Style of a level on the page."""
_SUMMARIES = {
    Level.OK: "nothing stands in the way of a training here",
    Level.UNKNOWN: "nothing fails; some things could not be seen from here",
    Level.WARN: "nothing fails; some things deserve a look",
    Level.FAIL: "a training would fail here: see to what fails first",
}


def summary(findings: Sequence[Finding]) -> str:
    """``1 fail, 9 ok:`` and one sentence about all of them."""
    count = Counter(one.level for one in findings)
    counts = ", ".join(f"{count[level]} {level}" for level in reversed(Level) if count[level])
    return f"{counts}: {_SUMMARIES[worst(findings)]}"


def findings_table(findings: Sequence[Finding]) -> TerminalTable:
    """One row for each finding, its remedy beneath the evidence."""
    shown = TerminalTable(box=None, padding=(0, 2, 0, 0), show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")
    for one in findings:
        text = Text(one.evidence)
        if one.remedy:
            text.append(f"\n→ {one.remedy}", style="italic")
        name = "  ".join(filter(None, [one.where, one.id]))
        shown.add_row(Text(str(one.level), style=_STYLES[one.level]), Text(name), text)
    return shown


def findings_page(findings: Sequence[Finding], *, host: str, at: float, took_s: float) -> str:
    """A self-contained page, what is worst first; ``at`` in UTC seconds."""
    level, order = worst(findings), list(Level)
    rows = [
        [
            Cell(str(one.level), _CLASSES[one.level]),
            Cell(one.id, "code"),
            Cell(one.evidence, note=f"→ {one.remedy}" if one.remedy else ""),
        ]
        for one in sorted(findings, key=lambda one: order.index(one.level), reverse=True)
    ]
    return page(
        f"Assessment of {host}",
        "launcher/checks/assess.html.j2",
        host=host,
        at=at,
        took_s=took_s,
        kind=_CLASSES[level] if level in (Level.OK, Level.FAIL) else "",
        summary=summary(findings),
        findings=Table(["", "check", "seen, and what to do"], rows),
    )
