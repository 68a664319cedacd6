"""Runs checks at once, each with its own time limit. An edge: threads and the clock.

A check that hangs is left behind in a daemon thread, which keeps no process from ending; what it
may hang on (a file system, a command) it has in a child process.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from launcher.assess.finding import Finding, unknown


@dataclass(frozen=True)
class Check:
    """One look at something; ``id`` names the finding when it does not answer in time."""

    id: str
    look: Callable[[], Iterable[Finding]]
    limit_s: float
    remedy: str = ""


def run_checks(checks: Sequence[Check], *, deadline: float = float("inf")) -> list[Finding]:
    """The findings of all checks, in their order; ``deadline`` in seconds of time.monotonic."""
    began = time.monotonic()
    running = [(check, *_start(check)) for check in checks]
    findings: list[Finding] = []
    for check, thread, found in running:
        limit = min(began + check.limit_s, deadline)
        thread.join(max(0.0, limit - time.monotonic()))
        if thread.is_alive():
            said = f"no answer within {limit - began:.1f} s"
            findings.append(unknown(check.id, said, check.remedy))
        else:
            findings += found
    return findings


def _start(check: Check) -> tuple[threading.Thread, list[Finding]]:
    found: list[Finding] = []

    def look() -> None:
        try:
            found.extend(list(check.look()))
        except Exception as error:  # one broken check must not cost the answers of the others
            found.append(unknown(check.id, f"it could not be looked at: {error!r}", check.remedy))

    thread = threading.Thread(target=look, name=check.id, daemon=True)
    thread.start()
    return thread, found
