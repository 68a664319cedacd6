"""A run as a card in a notebook, and ``Run.watch()``: one display that follows a run to its end.

The card shows state, progress, loss, what happened and where to look. Outside of notebooks
``watch`` shows the lines or the bar of the command line. Stopping it changes nothing.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.errors import UserError
from submitrain.html.templates import notebook_box
from submitrain.launcher.cli.progress import REFRESH_S, STATUS_EVERY_S, follow_on, time_left
from submitrain.launcher.notebook.chart import RunHistory, loss_chart
from submitrain.launcher.submit.record import in_notebook
from submitrain.launcher.summary import failure_line
from submitrain.run_folder import RunDir
from submitrain.status import RunState, RunStatus

if TYPE_CHECKING:
    from submitrain.launcher.run import Run

_KIND = {
    RunState.FINISHED: "good",
    RunState.FAILED: "bad",
    RunState.CANCELLED: "warn",
    RunState.STOPPED: "warn",
    RunState.UNKNOWN: "warn",
}
REPORT_S = 3.0
"""Seconds to wait for the report of a run that has ended just now."""
NO_LONGER = "no longer watched; the run continues (run.cancel() ends it)"


def card(status: RunStatus, history: RunHistory, *, failure: str | None = None, here: Path) -> str:
    """HTML of the card; links are relative to ``here``, the notebook's folder: its server finds
    files so."""
    run_dir = RunDir(Path(status.folder))
    files = {
        "report": run_dir.reports / "report.html",
        "output of rank 0": run_dir.log(status.attempt, 0, "out"),
        "errors of rank 0": run_dir.log(status.attempt, 0, "err"),
        "configuration": run_dir.config,
    }
    facts = [
        "" if status.loss is None else f"loss {status.loss:.4f}",
        "" if status.validation_loss is None else f"validation {status.validation_loss:.4f}",
        "" if status.tokens_per_s is None else f"{status.tokens_per_s:,.0f} tokens/s",
        time_left(status.eta_s),
        f"attempt {status.attempt}" if status.attempt > 1 else "",
        f"saved at {status.checkpoints[-1]}" if status.checkpoints else "",
        f"{status.cluster} job {status.job_ids[-1]}" if status.job_ids else status.cluster,
    ]
    return notebook_box(
        "launcher/notebook/card.html.j2",
        width_px=780,
        status=status,
        kind=_KIND.get(status.state, ""),
        share=min(100.0, 100.0 * status.step / (status.total_steps or 1)),
        facts=[fact for fact in facts if fact],
        chart=loss_chart(history),
        notes=[note for note in history.notes if not (status.why and status.why in note)],
        failure=failure,
        files=[
            (name, os.path.relpath(path, here)) for name, path in files.items() if path.exists()
        ],
        folder=os.path.relpath(run_dir.root, here),
    )


def card_of(run: Run, history: RunHistory | None = None, status: RunStatus | None = None) -> str:
    """The card of a run as of now."""
    found = status or run.status()
    failure = failure_line(run.folder) if found.state is RunState.FAILED else None
    newest = (history or RunHistory(run.folder)).read()
    return card(found, newest, failure=failure, here=Path.cwd())


def watch(run: Run, interval_s: float | None = None) -> None:
    """Show the run until it has ended, or until it is interrupted: the run then continues.

    Raises:
        UserError: ``interval_s`` is no positive number of seconds.
    """
    if interval_s is not None and not interval_s > 0:
        raise UserError(f"watch: expected interval_s > 0 (seconds), got {interval_s}")
    try:
        if in_notebook():
            _watch_card(run, interval_s or REFRESH_S * 2)
        else:
            from rich.console import Console

            follow_on(run, Console())
    except KeyboardInterrupt:
        sys.stdout.write(f"{run.run_id} is {NO_LONGER}\n")


def _watch_card(run: Run, pause_s: float) -> None:
    """One output, replaced; the scheduler is asked no more often than the command line does."""
    from IPython.display import HTML, display

    history, status, asked = RunHistory(run.folder), run.status(), time.monotonic()
    shown = card_of(run, history, status)
    handle: Any = display(HTML(shown), display_id=True)
    while not status.state.ended:
        time.sleep(pause_s)
        if time.monotonic() - asked >= STATUS_EVERY_S.get(status.cluster, 1.0):
            status, asked = run.status(), time.monotonic()
        if status.state.ended:
            # The supervisor's last act comes after its last word; the card links to it.
            given_up = time.monotonic() + REPORT_S
            report = run.run_dir.reports / "report.html"
            while not report.exists() and time.monotonic() < given_up:
                time.sleep(REFRESH_S / 5)
        before, shown = shown, card_of(run, history, status)
        if shown != before:
            handle.update(HTML(shown))
