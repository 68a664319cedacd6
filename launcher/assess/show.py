"""Findings for people: a table for the terminal, a page for the browser. Pure."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence

from rich.table import Table
from rich.text import Text

from launcher.assess.finding import Finding, Level, worst
from monitor.html.page import escape, page, table

_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red", Level.UNKNOWN: "dim"}
_SIGNS = {
    Level.OK: ("good", "&#10003;"),
    Level.WARN: ("warn", "!"),
    Level.FAIL: ("bad", "&#10007;"),
    Level.UNKNOWN: ("faint", "?"),
}
_SUMMARIES = {
    Level.OK: "nothing stands in the way of a training here",
    Level.UNKNOWN: "nothing fails; some things could not be seen from here",
    Level.WARN: "nothing fails; some things deserve a look",
    Level.FAIL: "a training would fail here: see to what fails first",
}


def counts(findings: Sequence[Finding]) -> str:
    """``1 fail, 2 warn, 9 ok``."""
    found = Counter(one.level for one in findings)
    return ", ".join(f"{found[level]} {level}" for level in reversed(Level) if found[level])


def summary(findings: Sequence[Finding]) -> str:
    """One sentence about all of them."""
    return f"{counts(findings)}: {_SUMMARIES[worst(findings)]}"


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
        shown.add_row(Text(str(one.level), style=_STYLES[one.level]), Text(one.id), text)
    return shown


def assess_page(findings: Sequence[Finding], *, host: str, at: float, took_s: float) -> str:
    """A self-contained page, what is worst first."""
    return page(f"Assessment of {host}", _body(findings, host, at, took_s))


def _body(findings: Sequence[Finding], host: str, at: float, took_s: float) -> Iterator[str]:
    level = worst(findings)
    kind = {Level.FAIL: "bad", Level.OK: "good"}.get(level, "")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at))
    yield f"<h1>Assessment of <code>{escape(host)}</code></h1>"
    yield f'<p class="faint">{when} UTC, in {took_s:.1f} s, as seen from this host.</p>'
    yield f'<p class="verdict {kind}">{escape(summary(findings))}</p>'
    order = list(Level)
    ranked = sorted(findings, key=lambda one: -order.index(one.level))
    yield table(["", "check", "seen, and what to do"], [_row(one) for one in ranked])


def _row(one: Finding) -> list[str]:
    kind, sign = _SIGNS[one.level]
    level = f'<span class="badge {kind}">{sign} {one.level}</span>'
    remedy = f"<br>&rarr; <i>{escape(one.remedy)}</i>" if one.remedy else ""
    # A long path must not push the rest out of the window.
    seen = f'<span style="overflow-wrap: anywhere">{escape(one.evidence)}{remedy}</span>'
    return [level, f"<code>{escape(one.id)}</code>", seen]
