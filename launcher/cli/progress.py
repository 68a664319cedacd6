"""Shows a run while it goes on: a live bar on a terminal, plain lines elsewhere, a summary at last.

Reads the run folder like every other observer: closing it, or losing it, changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from submitrain.events import Kind, number
from submitrain.launcher.summary import failure_line, next_steps, read_result, summary_rows
from submitrain.launcher.supervisor.rank_events import EventTail
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


class View(Protocol):
    """Where progress is shown."""

    def event(self, event: dict[str, Any]) -> None:
        """Something happened."""

    def status(self, status: RunStatus) -> None:
        """How the run is doing."""


def follow(run: Run, view: View, *, sleep: Callable[[float], None] = time.sleep) -> RunStatus:
    """Show events and status until the run has ended; returns its last status."""
    tails = [EventTail(path, 0) for path in (run.run_dir.attempts, run.run_dir.events(0))]
    told, status, asked = run.ended_at(), run.status(), time.monotonic()
    while True:
        for tail in tails:
            for event in tail.read():
                view.event(event)
        view.status(status)
        if status.state.ended:
            return status
        sleep(REFRESH_S)
        due = time.monotonic() - asked >= STATUS_EVERY_S.get(status.cluster, 1.0)
        if due or run.ended_at() != told:
            told, status, asked = run.ended_at(), run.status(), time.monotonic()


def follow_on(run: Run, console: Console) -> RunStatus:
    """Follow on a console: live where it is a terminal, plain lines where it is not."""
    if not console.is_terminal:
        return follow(run, PlainView(console))
    with Live(console=console, refresh_per_second=8, transient=True) as live:
        return follow(run, LiveView(console, live))


@dataclass
class Latest:
    """The newest number of each kind that events carry."""

    step: int = 0
    values: dict[str, float] = field(default_factory=dict)
    validated: int | None = None
    """Step of the newest validation."""

    def take(self, event: dict[str, Any]) -> None:
        """Note what an event says."""
        if event["kind"] == Kind.STEP:
            self.step = int(event["step"])
            names = ("loss", "lr", "tokens_per_s", "mfu", "grad_norm")
            self.values |= {
                name: event[name] for name in names if number(event.get(name)) is not None
            }
        elif event["kind"] == Kind.VALIDATION and number(event.get("loss")) is not None:
            self.values["validation_loss"], self.validated = event["loss"], event.get("step")

    def text(self) -> str:
        """``loss 3.2145  lr 1.0e-04  12,345 tokens/s``"""
        forms = {
            "loss": "loss {:.4f}",
            "validation_loss": f"val loss {{:.4f}} (step {self.validated})",
            "lr": "lr {:.2e}",
            "tokens_per_s": "{:,.0f} tokens/s",
            "mfu": "MFU {:.1%}",
        }
        return "  ".join(
            form.format(self.values[name]) for name, form in forms.items() if name in self.values
        )


class PlainView:
    """One line for what matters, and for a step every few seconds: for logs and pipes."""

    def __init__(self, console: Console, *, every_s: float = PLAIN_EVERY_S) -> None:
        self._console, self._every_s = console, every_s
        self._latest = Latest()
        self._shown_at = float("-inf")
        self._last_state = ""

    def event(self, event: dict[str, Any]) -> None:
        """Print what is worth a line."""
        self._latest.take(event)
        line = notable(event)
        if line:
            self._print(line)
        elif event["kind"] == Kind.STEP and time.monotonic() - self._shown_at >= self._every_s:
            self._shown_at = time.monotonic()
            self._print(f"step {self._latest.step}  {self._latest.text()}")

    def status(self, status: RunStatus) -> None:
        """Print the state when it has changed."""
        state = f"{status.state}: {status.why}" if status.why else str(status.state)
        if status.state in (RunState.QUEUED, RunState.STARTING) and state != self._last_state:
            self._print(state)
        self._last_state = state

    def _print(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveView:
    """A bar with step, loss, rate and time left; restarts and checkpoints scroll past above it."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console, self._live = console, live
        self._latest = Latest()

    def event(self, event: dict[str, Any]) -> None:
        """Take its numbers; print what is worth a line."""
        self._latest.take(event)
        line = notable(event)
        if line:
            self._console.print(line, markup=False, highlight=False, style="dim")

    def status(self, status: RunStatus) -> None:
        """Draw the bar anew."""
        step = max(self._latest.step, status.step)
        total = status.total_steps
        row = Table.grid(padding=(0, 2))
        where = f"{status.state}" + (f" ({status.why})" if status.why else "")
        bar = ProgressBar(total=total, completed=step, width=30, pulse=total is None)
        count = f"step {step}/{total}" if total else f"step {step}"
        row.add_row(Text(where, style="bold"), bar, count, time_left(status.eta_s))
        lower = self._latest.text() + (f"  attempt {status.attempt}" if status.attempt > 1 else "")
        grid = Table.grid()
        grid.add_row(row)
        grid.add_row(Text(lower))
        self._live.update(grid)


def notable(event: dict[str, Any]) -> str | None:
    """A line about an event that a watcher should not miss; None for the everyday ones."""
    kind, step = event["kind"], event.get("step")
    if kind == Kind.VALIDATION:
        loss = event.get("loss")
        return f"step {step}  validation loss {_shown(loss)}"
    if kind == Kind.CHECKPOINT:
        return f"step {step}  checkpoint saved in {_shown(event.get('save_s'), '{:.1f}')} s"
    if kind == Kind.CHECKPOINT_INTERVAL:
        return f"step {step}  saves every {_shown(event.get('interval_s'), '{:.0f}')} s from now on"
    if kind == Kind.CHECKPOINT_FAILED:
        return f"step {step}  checkpoint could not be saved: {event.get('reason')}"
    if kind == Kind.CHECKPOINT_REJECTED:
        return f"checkpoint {event.get('path')} was not used: {event.get('reason')}"
    if kind == Kind.RESUME:
        return f"goes on from the checkpoint of step {step}"
    if kind == Kind.STOPPED:
        return f"step {step}  saved and stopped ({event.get('reason')})"
    if kind == Kind.FAILURE:
        return f"rank {event.get('rank')} failed: {event.get('exception')}: {event.get('message')}"
    if kind == Kind.ATTEMPT_START and event.get("attempt", 1) > 1:
        return f"attempt {event['attempt']} starts"
    if kind == Kind.ATTEMPT_END and event.get("action") not in (None, "done"):
        why = event.get("explanation") or event.get("cause")
        return f"attempt {event.get('attempt')} ended: {why}; next: {event['action']}"
    return None


def show_summary(run: Run, status: RunStatus, console: Console) -> None:
    """What came of it, and what to do next."""
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


def _shown(value: object, form: str = "{:.4f}") -> str:
    return form.format(value) if isinstance(value, int | float) else str(value)
