"""``python -m launcher assess``: looks at everything at once, and tells within ten seconds.

Findings for people: a table for the terminal, a page for the browser. Pure.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import Path

from rich.table import Table
from rich.text import Text

from submitrain.errors import UserError
from submitrain.html.page import page, table
from submitrain.launcher.checks.assess import (
    TOTAL_S,
    Check,
    Subject,
    checks_of,
    load_subject,
    run_checks,
)
from submitrain.launcher.checks.finding import Finding, Level, worst
from submitrain.launcher.cli.commands import log_to_stderr
from submitrain.monitor.status import console

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


# ruff: noqa: T201 - printing is what a command line does


_LOAD_S = 3.0
_PAGE_S = 0.8
"""Seconds for reading the configuration, and for writing the page after everything else."""


def main(options: argparse.Namespace) -> int:
    """Assess, and tell; 1 if something fails, else 0.

    Raises:
        UserError: the configuration or the file for the page is wrong.
    """
    log_to_stderr()
    if options.nodes is not None:
        return _nodes(options)
    if options.quick:
        raise UserError(
            "--quick: expected with --nodes N, got it alone; add --nodes, or leave it out"
        )
    began, at = time.monotonic(), time.time()
    findings = assess(options.config, deadline=began + TOTAL_S)
    took_s, host = time.monotonic() - began, socket.gethostname()
    level = worst(findings)
    if options.json:
        told = [one.as_json() for one in findings]
        head = {"host": host, "at": at, "took_s": round(took_s, 3), "level": str(level)}
        print(json.dumps({**head, "findings": told}, indent=2))
    else:
        console().print(findings_table(findings))
        print(f"\n{host}: {summary(findings)}")
    if options.html is not None:
        _write_page(options.html, assess_page(findings, host=host, at=at, took_s=took_s))
    return 1 if level is Level.FAIL else 0


def _nodes(options: argparse.Namespace) -> int:
    """Look at nodes by a job of its own; 1 if one of them is unfit."""
    from submitrain.launcher.checks.assess_nodes import (
        Look,
        closing_lines,
        look_at_nodes,
        nodes_table,
        say_on_stderr,
    )

    if options.html is not None:
        raise UserError("--html: expected without --nodes, got both; use --json with --nodes")
    look = Look(options.nodes, options.config, options.quick)
    record, folder = look_at_nodes(look, say_on_stderr)
    if options.json:
        print(json.dumps({**record, "folder": str(folder)}, indent=2))
    else:
        console().print(nodes_table(record))
        print("\n" + "\n".join(closing_lines(record, folder)))
    return 1 if record["level"] == str(Level.FAIL) else 0


def assess(config: str | None, *, deadline: float) -> list[Finding]:
    """All findings, at the latest at ``deadline`` (of time.monotonic).

    Raises:
        UserError: the configuration is wrong.
    """
    loaded: list[Subject] = []
    remedy = "the file system that it or PATH is on may hang; try without --config"
    trouble = _within(_LOAD_S, "config", lambda: loaded.append(load_subject(config)), remedy)
    subject = loaded[0] if loaded else Subject(None, None, True, dict(os.environ))
    return [*trouble, *run_checks(checks_of(subject), deadline=deadline)]


def _write_page(path: str, text: str) -> None:
    try:
        late = _within(_PAGE_S, "--html", lambda: Path(path).write_text(text))
    except OSError as error:
        raise UserError(
            f"--html: expected a file that can be written, got {path} ({error.strerror})"
        ) from error
    if late:
        raise UserError(f"--html: {path} could not be written within {_PAGE_S:g} s")


def _within(limit_s: float, id: str, act: Callable[[], object], remedy: str = "") -> list[Finding]:
    """Do something that may hang; a finding when it did not end in time, its errors raised here."""
    errors: list[UserError | OSError] = []

    def look() -> list[Finding]:
        try:
            act()
        except (UserError, OSError) as error:
            errors.append(error)
        return []

    late = run_checks([Check(id, look, limit_s, remedy)])
    for error in errors:
        raise error
    return late
