"""``python -m launcher assess``: looks at everything at once, and tells within ten seconds."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import os
import socket
import time
from pathlib import Path

from launcher.assess.catalogue import TOTAL_S, checks_of
from launcher.assess.finding import Finding, Level, worst
from launcher.assess.run import Check, run_checks
from launcher.assess.show import assess_page, findings_table, summary
from launcher.assess.subject import Subject, load_subject
from launcher.commands import console, log_to_stderr
from train.errors import UserError

_LOAD_S = 3.0


def main(options: argparse.Namespace) -> int:
    """Assess, and tell; 1 if something fails, else 0.

    Raises:
        UserError: the configuration or the file for the page is wrong.
    """
    log_to_stderr()
    began, at = time.monotonic(), time.time()
    _check_page(options.html)
    findings = assess(options.config, deadline=began + TOTAL_S)
    took_s, host = time.monotonic() - began, socket.gethostname()
    if options.html is not None:
        Path(options.html).write_text(assess_page(findings, host=host, at=at, took_s=took_s))
    level = worst(findings)
    if options.json:
        told = [one.as_json() for one in findings]
        head = {"host": host, "at": at, "took_s": round(took_s, 3), "level": str(level)}
        print(json.dumps({**head, "findings": told}, indent=2))
    else:
        console().print(findings_table(findings))
        print(f"\n{host}: {summary(findings)}")
    return 1 if level is Level.FAIL else 0


def assess(config: str | None, *, deadline: float) -> list[Finding]:
    """All findings, at the latest at ``deadline`` (of time.monotonic).

    Raises:
        UserError: the configuration is wrong.
    """
    loaded: list[Subject | UserError] = []

    def load() -> list[Finding]:
        try:
            loaded.append(load_subject(config))
        except UserError as error:
            loaded.append(error)
        return []

    remedy = "the file system that it or PATH is on may hang; try without --config"
    trouble = run_checks([Check("config", load, _LOAD_S, remedy)], deadline=deadline)
    found = loaded[0] if loaded else Subject(None, None, True, dict(os.environ))
    if isinstance(found, UserError):
        raise found
    return [*trouble, *run_checks(checks_of(found), deadline=deadline)]


def _check_page(path: str | None) -> None:
    if path is None:
        return
    if not os.access(Path(path).absolute().parent, os.W_OK) or Path(path).is_dir():
        raise UserError(f"--html: expected a file that can be written, got {path}")
