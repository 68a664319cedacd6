"""``python -m launcher assess``: looks at everything at once, and tells within ten seconds."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from launcher.assess.catalogue import TOTAL_S, checks_of
from launcher.assess.finding import Finding, Level, worst
from launcher.assess.run import Check, run_checks
from launcher.assess.show import assess_page, findings_table, summary
from launcher.assess.subject import Subject, load_subject
from launcher.commands import console, log_to_stderr
from train.errors import UserError

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
    from launcher.assess.nodes import Look, look_at_nodes, say_on_stderr
    from launcher.assess.nodes_show import closing_lines, nodes_table

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
