"""Shows a run while it goes on: a live bar on a terminal, plain lines elsewhere, a summary at last.

Reads the run folder like every other observer: closing it, or losing it, changes nothing.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from submitrain.events import EventTail, Kind, number
from submitrain.launcher.summary import failure_line, next_steps, read_result, summary_rows
from submitrain.status import RunState, RunStatus
from submitrain.text import duration

if TYPE_CHECKING:
    from submitrain.launcher.run import Run

REFRESH_S = 0.5
STATUS_EVERY_S = {"local": 1.0, "slurm": 15.0}
PLAIN_EVERY_S = 5.0
_STATE_STYLE = {
    RunState.FINISHED: "green",
    RunState.FAILED: "red",
    RunState.CANCELLED: "yellow",
    RunState.STOPPED: "yellow",
}


def follow_on(run: Run, console: Console) -> RunStatus:
    """Show events and status until the run has ended; returns its last status.

    Live where the console is a terminal, plain lines (logs, pipes) where it is not.
    """
    tails = [EventTail(path, 0) for path in (run.run_dir.attempts, run.run_dir.events(0))]
    with ExitStack() as stack:
        live = None
        if console.is_terminal:
            live = stack.enter_context(Live(console=console, refresh_per_second=8, transient=True))
        view = _View(console, live)
        ended_at, status, asked = run.ended_at(), run.status(), time.monotonic()
        while True:
            for tail in tails:
                for event in tail.read():
                    view.event(event)
            view.status(status)
            if status.state.ended:
                return status
            time.sleep(REFRESH_S)
            due = time.monotonic() - asked >= STATUS_EVERY_S.get(status.cluster, 1.0)
            if due or run.ended_at() != ended_at:
                ended_at, status, asked = run.ended_at(), run.status(), time.monotonic()


class _View:
    """A bar with step, loss, rate and ETA below the lines that matter; without ``live`` lines only,
    and one for a step every few seconds."""

    def __init__(self, console: Console, live: Live | None) -> None:
        self._console, self._live = console, live
        self._step = 0
        self._numbers: dict[str, float] = {}
        """The newest of each kind that events carry."""
        self._validated: int | None = None
        self._shown_at = float("-inf")
        self._last_state = ""

    def event(self, event: dict[str, Any]) -> None:
        """Take its numbers; print what is worth a line."""
        step = event["kind"] == Kind.STEP
        if step:
            self._step = int(event["step"])
            names = ("loss", "lr", "tokens_per_s", "mfu", "grad_norm")
            found = {name: number(event.get(name)) for name in names}
            self._numbers |= {name: value for name, value in found.items() if value is not None}
        elif event["kind"] == Kind.VALIDATION and number(event.get("loss")) is not None:
            self._numbers["validation_loss"], self._validated = event["loss"], event.get("step")
        if line := notable(event):
            self._print(line)
        elif step and not self._live and time.monotonic() - self._shown_at >= PLAIN_EVERY_S:
            self._shown_at = time.monotonic()
            self._print(f"step {self._step}  {self._numbers_text()}")

    def status(self, status: RunStatus) -> None:
        """Draw the bar anew, or print the state when it has changed before the first step."""
        if self._live is None:
            state = f"{status.state}: {status.why}" if status.why else str(status.state)
            if status.state in (RunState.QUEUED, RunState.STARTING) and state != self._last_state:
                self._print(state)
            self._last_state = state
            return
        step, total = max(self._step, status.step), status.total_steps
        state = f"{status.state}" + (f" ({status.why})" if status.why else "")
        bar = ProgressBar(total=total, completed=step, width=30, pulse=total is None)
        count = f"step {step}/{total}" if total else f"step {step}"
        row, grid = Table.grid(padding=(0, 2)), Table.grid()
        row.add_row(Text(state, style="bold"), bar, count, time_left(status.eta_s))
        attempt = f"  attempt {status.attempt}" if status.attempt > 1 else ""
        grid.add_row(row)
        grid.add_row(Text(f"{self._numbers_text()}{attempt}"))
        self._live.update(grid)

    def _numbers_text(self) -> str:
        """``loss 3.2145  lr 1.0e-04  12,345 tokens/s``"""
        forms = {
            "loss": "loss {:.4f}",
            "validation_loss": f"val loss {{:.4f}} (step {self._validated})",
            "lr": "lr {:.2e}",
            "tokens_per_s": "{:,.0f} tokens/s",
            "mfu": "MFU {:.1%}",
        }
        found = self._numbers
        return "  ".join(form.format(found[name]) for name, form in forms.items() if name in found)

    def _print(self, line: str) -> None:
        style = "dim" if self._live else None
        soft_wrap = self._live is None
        self._console.print(line, markup=False, highlight=False, style=style, soft_wrap=soft_wrap)


def notable(event: dict[str, Any]) -> str | None:
    """A line about an event that a watcher should not miss; None for the everyday ones."""

    def shown(name: str, form: str) -> str:
        value = event.get(name)
        return form.format(value) if isinstance(value, int | float) else str(value)

    kind, step, reason = event["kind"], event.get("step"), event.get("reason")
    if kind == Kind.ATTEMPT_START and event.get("attempt", 1) > 1:
        return f"attempt {event['attempt']} starts"
    if kind == Kind.ATTEMPT_END and event.get("action") not in (None, "done"):
        why = event.get("explanation") or event.get("cause")
        return f"attempt {event.get('attempt')} ended: {why}; next: {event['action']}"
    failed = f"{event.get('exception')}: {event.get('message')}"
    interval = shown("interval_s", "{:.0f}")
    lines: dict[str, str] = {
        Kind.VALIDATION: f"step {step}  validation loss {shown('loss', '{:.4f}')}",
        Kind.CHECKPOINT: f"step {step}  checkpoint saved in {shown('save_s', '{:.1f}')} s",
        Kind.CHECKPOINT_INTERVAL: f"step {step}  saves every {interval} s from now on",
        Kind.CHECKPOINT_FAILED: f"step {step}  checkpoint could not be saved: {reason}",
        Kind.CHECKPOINT_REJECTED: f"checkpoint {event.get('path')} was not used: {reason}",
        Kind.RESUME: f"resumed from the checkpoint of step {step}",
        Kind.STOPPED: f"step {step}  saved and stopped ({reason})",
        Kind.FAILURE: f"rank {event.get('rank')} failed: {failed}",
    }
    return lines.get(kind)


def show_summary(run: Run, status: RunStatus, console: Console) -> None:
    """The run's final status, and what to do next."""
    result = read_result(run.folder, status)
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in summary_rows(result):
        table.add_row(label, Text(text))
    failure = failure_line(run.folder) if status.state is RunState.FAILED else None
    if failure:
        table.add_row("first failure", Text(failure))
    for place, command in enumerate(next_steps(result)):
        table.add_row("" if place else "next", Text(command))
    style = _STATE_STYLE.get(status.state, "")
    console.print(Panel(table, title=escape(run.run_id), border_style=style, expand=False))


def time_left(eta_s: float | None) -> str:
    """``12 min 30 s left``"""
    return "" if eta_s is None else f"{duration(eta_s)} left"
