"""``Run.watch()``: one display that follows a run to its end. Stopping it changes nothing.

In a notebook it is the run's card; anywhere else the lines or the bar of the command line.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.card import card
from launcher.explain import failure_line
from launcher.progress import REFRESH_S, STATUS_EVERY_S, follow_on
from launcher.record import in_notebook
from launcher.sight import Sight
from monitor.status import RunState, RunStatus
from train.errors import UserError

if TYPE_CHECKING:
    from launcher.run import Run

REPORT_S = 3.0
"""Seconds to wait for the report of a run that has ended just now."""
NO_LONGER = "no longer watched; the run goes on (run.cancel() ends it)"


def card_of(run: Run, sight: Sight | None = None, status: RunStatus | None = None) -> str:
    """The card of a run as of now."""
    found = status or run.status()
    failure = failure_line(run.folder) if found.state is RunState.FAILED else None
    return card(found, (sight or Sight(run.folder)).look(), failure=failure, here=Path.cwd())


def watch(run: Run, interval_s: float | None = None) -> None:
    """Show the run until it has ended, or until it is interrupted: the run then goes on.

    Raises:
        UserError: ``interval_s`` is no positive number of seconds.
    """
    if interval_s is not None and not interval_s > 0:
        raise UserError(f"watch: expected interval_s > 0 (seconds), got {interval_s}")
    try:
        if in_notebook():
            _watch_card(run, interval_s)
        else:
            from rich.console import Console

            follow_on(run, Console())
    except KeyboardInterrupt:
        sys.stdout.write(f"{run.run_id} is {NO_LONGER}\n")


def _watch_card(run: Run, interval_s: float | None) -> None:
    """The scheduler is asked no more often than the command line does."""
    sight = Sight(run.folder)
    status, asked = run.status(), time.monotonic()
    pause_s = interval_s or REFRESH_S * 2
    show = _Display()
    while True:
        if status.state.ended:
            _await_report(run)
            show(card_of(run, sight, status))
            return
        show(card_of(run, sight, status))
        time.sleep(pause_s)
        if time.monotonic() - asked >= STATUS_EVERY_S.get(status.cluster, 1.0):
            status, asked = run.status(), time.monotonic()


def _await_report(run: Run) -> None:
    """The supervisor's last act comes after its last word; the card links to it."""
    given_up = time.monotonic() + REPORT_S
    while not (run.run_dir.reports / "report.html").exists() and time.monotonic() < given_up:
        time.sleep(REFRESH_S / 5)


class _Display:
    """One output of a notebook, replaced by what comes after."""

    def __init__(self) -> None:
        self._handle: Any = None
        self._shown = ""

    def __call__(self, html: str) -> None:
        from IPython.display import HTML, display

        if html == self._shown:
            return
        if self._handle is None:
            self._handle = display(HTML(html), display_id=True)
        else:
            self._handle.update(HTML(html))
        self._shown = html
