"""Findings for people: a table for the terminal, a page for the browser."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from html import escape

from rich.table import Table
from rich.text import Text

from submitrain.html.page import page, table
from submitrain.launcher.checks.finding import Finding, Level, worst

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.UNKNOWN: "dim"}
_BADGES = {
    Level.OK: ("good", "&#10003;"),
    Level.WARN: ("warn", "!"),
    Level.FAIL: ("bad", "&#10007;"),
    Level.UNKNOWN: ("faint", "?"),
}
"""Class and sign of a level on the page."""
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


def findings_table(findings: Sequence[Finding]) -> Table:
    """One row for each finding, its remedy beneath the evidence."""
    shown = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
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
    return page(f"Assessment of {host}", _body(findings, host, at, took_s))


def _body(findings: Sequence[Finding], host: str, at: float, took_s: float) -> Iterator[str]:
    kind = {Level.FAIL: "bad", Level.OK: "good"}.get(worst(findings), "")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
    yield f"<h1>Assessment of <code>{escape(host)}</code></h1>"
    yield f'<p class="faint">{when} UTC, in {took_s:.1f} s, as seen from this host.</p>'
    yield f'<p class="verdict {kind}">{escape(summary(findings))}</p>'
    rows = []
    for one in sorted(findings, key=lambda one: list(Level).index(one.level), reverse=True):
        color, sign = _BADGES[one.level]
        remedy = f"<br>&rarr; <i>{escape(one.remedy)}</i>" if one.remedy else ""
        rows.append(
            [
                f'<span class="badge {color}">{sign} {one.level}</span>',
                f"<code>{escape(one.id)}</code>",
                # A long path must not push the rest out of the window.
                f'<span style="overflow-wrap: anywhere">{escape(one.evidence)}{remedy}</span>',
            ]
        )
    yield table(["", "check", "seen, and what to do"], rows)
