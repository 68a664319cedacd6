"""A run as a card in a notebook: state, progress, loss, what happened, where to look. Pure.

``Run.watch()``: one display that follows a run to its end. Stopping it changes nothing.

In a notebook it is the run's card; anywhere else the lines or the bar of the command line.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from submitrain.errors import UserError
from submitrain.html.page import fragment
from submitrain.launcher.cli.progress import REFRESH_S, STATUS_EVERY_S, follow_on, time_left
from submitrain.launcher.notebook.chart import Sight, loss_chart
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
_SIGN = {"good": "&#10003; ", "bad": "&#10007; ", "warn": "&#9679; ", "": "&#9656; "}


def card(status: RunStatus, sight: Sight, *, failure: str | None = None, here: Path) -> str:
    """HTML of the card; links are relative to ``here``, the notebook's folder."""
    parts = [
        _head(status, said=bool(failure)),
        _bar(status),
        _facts(status),
        loss_chart(sight),
        _notes(status, sight, failure),
        _links(status, here),
    ]
    return fragment("".join(parts))


def _head(status: RunStatus, *, said: bool) -> str:
    kind = _KIND.get(status.state, "")
    tell = status.why and not said
    why = f'<span class="faint">{escape(status.why)}</span>' if tell else ""
    return (
        f'<div class="head"><span class="name">{escape(status.run_id)}</span>'
        f'<span class="state {kind}">{_SIGN[kind]}{status.state}</span>{why}</div>'
    )


def _bar(status: RunStatus) -> str:
    if not status.total_steps:
        return ""
    share = min(100.0, 100.0 * status.step / status.total_steps)
    kind = _KIND.get(status.state, "")
    return f'<div class="bar"><div class="{kind}" style="width: {share:.1f}%"></div></div>'


def _facts(status: RunStatus) -> str:
    total = f" of {status.total_steps}" if status.total_steps else ""
    saved = status.checkpoints[-1] if status.checkpoints else None
    facts = [
        f"step <b>{status.step}</b>{total}",
        _value("loss", status.loss, "{:.4f}"),
        _value("validation", status.validation_loss, "{:.4f}"),
        _value("", status.tokens_per_s, "{:,.0f} tokens/s"),
        time_left(status.eta_s),
        f"attempt {status.attempt}" if status.attempt > 1 else "",
        f"saved at {saved}" if saved is not None else "",
        escape(f"{status.cluster} job {status.job_ids[-1]}" if status.job_ids else status.cluster),
    ]
    spans = "".join(f"<span>{fact}</span>" for fact in facts if fact)
    return f'<div class="facts">{spans}</div>'


def _value(label: str, value: float | None, form: str) -> str:
    return "" if value is None else f"{label} {form.format(value)}".strip()


def _notes(status: RunStatus, sight: Sight, failure: str | None) -> str:
    new = [note for note in sight.notes if not (status.why and status.why in note)]
    lines = "".join(f"<li>{escape(note)}</li>" for note in new)
    first = f'<pre class="bad">{escape(failure)}</pre>' if failure else ""
    return (f'<ul class="faint">{lines}</ul>' if lines else "") + first


def _links(status: RunStatus, here: Path) -> str:
    run_dir = RunDir(Path(status.folder))
    found = "".join(
        f'<span><a href="{_target(path, here)}" target="_blank">{escape(label)}</a></span>'
        for label, path in _files(run_dir, status.attempt)
    )
    folder = f'<span class="faint">{escape(_shown(run_dir.root, here))}</span>'
    return f'<div class="facts">{found}{folder}</div>'


def _files(run_dir: RunDir, attempt: int) -> Iterator[tuple[str, Path]]:
    """What there is to read of a run."""
    candidates = [
        ("report", run_dir.reports / "report.html"),
        ("output of rank 0", run_dir.log(attempt, 0, "out")),
        ("errors of rank 0", run_dir.log(attempt, 0, "err")),
        ("configuration", run_dir.config),
    ]
    yield from ((label, path) for label, path in candidates if path.exists())


def _target(path: Path, here: Path) -> str:
    return quote(_shown(path, here))


def _shown(path: Path, here: Path) -> str:
    """Relative to the notebook, which is how its server finds files."""
    return os.path.relpath(path, here)


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
