"""The screen of ``top``: keys, the newest log lines of a run, and one frame as rich renders it."""

from __future__ import annotations

import os
import re
import select
import termios
import tty
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from submitrain.monitor.status import status_rows
from submitrain.monitor.watch.fleet import FleetView, RunView
from submitrain.run_folder import RunDir
from submitrain.status import RunState
from submitrain.text import count_text, read_end, short_duration


class Key(StrEnum):
    """A key that means something here."""

    UP = "up"
    DOWN = "down"
    LEFT = "left"
    RIGHT = "right"
    FIRST = "first"
    LAST = "last"
    OPEN = "open"
    BACK = "back"
    QUIT = "quit"


_SEQUENCES = {
    Key.UP: ("k", "\x1b[A", "\x1bOA"),
    Key.DOWN: ("j", "\x1b[B", "\x1bOB"),
    Key.LEFT: ("h", "\x1b[D", "\x1bOD"),
    Key.RIGHT: ("l", "\x1b[C", "\x1bOC"),
    Key.FIRST: ("g", "\x1b[H", "\x1bOH", "\x1b[1~"),
    Key.LAST: ("G", "\x1b[F", "\x1bOF", "\x1b[4~"),
    Key.OPEN: ("\r", "\n"),
    Key.BACK: ("\x1b", "\x7f"),
    Key.QUIT: ("q", "Q"),
}
_KEYS = {text: key for key, texts in _SEQUENCES.items() for text in texts}
_ONE = re.compile(r"\x1b\[[0-9;]*[A-Za-z~]|\x1bO[A-Za-z]|.", re.S)


def keys_of(data: bytes) -> list[Key]:
    """The keys in what a terminal sent at once; others mean nothing."""
    found = _ONE.findall(data.decode(errors="replace"))
    return [_KEYS[one] for one in found if one in _KEYS]


@contextmanager
def key_by_key(descriptor: int) -> Iterator[None]:
    """The terminal hands over each key at once and does not show it; as before at the end."""
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def read_keys(descriptor: int, timeout_s: float) -> list[Key]:
    """Wait for keys; a terminal that is gone is the same as ``q``."""
    ready, _, _ = select.select([descriptor], [], [], timeout_s)
    if not ready:
        return []
    try:
        data = os.read(descriptor, 256)
    except OSError:
        data = b""
    return keys_of(data) if data else [Key.QUIT]


_ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(?:\x07|\x1b\\)?|[@-Z\\^_])")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


def log_files(folder: Path) -> list[Path]:
    """Logs of the newest attempt that hold something, by rank; before it, those of the job."""
    run_dir = RunDir(folder)
    attempt = run_dir.newest_attempt()
    ranks = sorted(run_dir.logs(attempt).glob("rank*.*")) if attempt else []
    files = [path for path in ranks if _size(path)]
    return files or [path for path in sorted(run_dir.submitit.glob("*_log.*")) if _size(path)]


def newest_lines(path: Path, count: int) -> list[str]:
    """The last lines; of a progress bar its last state, without escapes and control characters."""
    try:
        text = read_end(path).decode(errors="replace")
    except OSError as error:
        return [f"cannot be read: {error.strerror}"]
    lines = [_clean(line) for line in text.split("\n")]
    return [line for line in lines if line][-count:]


def _clean(line: str) -> str:
    states = [state for state in _ESCAPES.sub("", line).split("\r") if state.strip()]
    return _CONTROL.sub("", states[-1]).expandtabs().rstrip() if states else ""


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


STYLES = {
    RunState.RUNNING: "green",
    RunState.FINISHED: "dim",
    RunState.FAILED: "bold red",
    RunState.CANCELLED: "yellow",
    RunState.STOPPED: "yellow",
    RunState.UNKNOWN: "magenta",
    RunState.QUEUED: "cyan",
    RunState.STARTING: "cyan",
}
_HELP = "up/down choose  left/right log  enter larger  esc back  q quit"
_DETAILS = ("state", "next step", "cluster", "nodes", "attempt", "newest checkpoint", "memory")
LEAST_ROWS = 3


@dataclass(frozen=True)
class Choice:
    """What the person at the terminal has chosen."""

    run_id: str = ""
    log: int = 0
    opened: bool = False
    """The chosen run has the whole screen."""

    def after(self, key: Key, runs: Sequence[RunView]) -> Choice:
        """The choice after a key."""
        if key is Key.OPEN:
            return replace(self, opened=True)
        if key is Key.BACK:
            return replace(self, opened=False)
        if key in (Key.LEFT, Key.RIGHT):
            return replace(self, log=self.log + (1 if key is Key.RIGHT else -1))
        at, last = self.place(runs), len(runs) - 1
        to = {Key.UP: at - 1, Key.DOWN: at + 1, Key.FIRST: 0, Key.LAST: last}.get(key, at)
        if last < 0:
            return self
        run_id = runs[min(max(to, 0), last)].status.run_id
        return replace(self, run_id=run_id, log=0 if run_id != self.run_id else self.log)

    def place(self, runs: Sequence[RunView]) -> int:
        """Where the chosen run is now; the first one where it is gone."""
        names = [view.status.run_id for view in runs]
        return names.index(self.run_id) if self.run_id in names else 0


@dataclass(frozen=True)
class Log:
    """The newest lines of one log of the chosen run; ``name`` is empty where there is none."""

    name: str = ""
    lines: tuple[str, ...] = ()
    of: int = 0
    """How many logs there are."""


def frame(view: FleetView, choice: Choice, log: Log, *, size: tuple[int, int]) -> RenderableType:
    """The whole screen; ``size`` is columns and lines."""
    width, height = size
    room = max(1, height - 3)
    if not view.runs:
        return Group(_title(view), Text("no runs", style="dim"))
    at = choice.place(view.runs)
    rows = 1 if choice.opened else min(len(view.runs), max(LEAST_ROWS, room // 2))
    rows = min(rows, max(1, room - 1))
    first = min(max(0, at - rows // 2), len(view.runs) - rows)
    shown = view.runs[first : first + rows]
    below = _below(view.runs[at], log, view.at, lines=max(0, room - rows - 1))
    table = runs_table(shown, width, view.at, chosen=at - first)
    help_line = Text(_HELP, style="dim", no_wrap=True, overflow="ellipsis")
    return Group(_title(view), table, *below, help_line)


def runs_table(
    runs: Sequence[RunView], width: int, now: float, *, chosen: int | None = None
) -> Table:
    """One line for every run, in ``width`` columns."""
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, 1, 0, 0), width=width)
    table.add_column("run", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("state", width=9, no_wrap=True)
    for name, columns in (("step", 11), ("loss", 7), ("tok/s", 7), ("ETA", 7)):
        table.add_column(name, width=columns, no_wrap=True, justify="right", overflow="ellipsis")
    table.add_column("updated", width=7, no_wrap=True, justify="right")
    table.add_column("att", width=3, no_wrap=True, justify="right")
    table.add_column("!", width=2, no_wrap=True, justify="right")
    names = max(8, width - 9 - 11 - 7 - 7 - 7 - 7 - 3 - 2 - 8)
    for place, view in enumerate(runs):
        s = view.status
        table.add_row(
            Text(short_name(s.run_id, names)),
            Text(str(s.state), style=STYLES[s.state]),
            Text(f"{s.step}/{s.total_steps}" if s.total_steps else str(s.step)),
            Text("" if s.loss is None else f"{s.loss:.4f}"),
            Text(count_text(s.tokens_per_s)),
            Text(short_duration(s.eta_s)),
            Text("" if s.last_activity_at is None else short_duration(now - s.last_activity_at)),
            Text(str(s.attempt) if s.attempt else ""),
            Text(str(len(view.alerts)) if view.alerts else "", style="bold red"),
            style="reverse" if place == chosen else "",
        )
    return table


def short_name(name: str, width: int) -> str:
    """The name in so many columns: its beginning, and its end, by which runs differ."""
    if len(name) <= width:
        return name
    end = min(8, width // 2)
    return f"{name[: width - end - 1]}…{name[-end:]}"


def _title(view: FleetView) -> Text:
    states = Counter(one.status.state for one in view.runs)
    counts = "  ".join(f"{states[state]} {state}" for state in RunState if states[state])
    title = Text(
        f"{len(view.runs)} runs  {counts}", style="bold", no_wrap=True, overflow="ellipsis"
    )
    if view.scheduler_answers is False:
        title.append("  Slurm does not answer", style="bold red")
    return title


def _below(view: RunView, log: Log, now: float, *, lines: int) -> list[RenderableType]:
    """The chosen run in so many lines: what matters most first, the rest is its log."""
    if lines < 1:
        return []
    details = _details(view)[: max(0, lines - 1)]
    left = lines - 1 - len(details)
    parts: list[RenderableType] = [Rule(Text(view.status.run_id, style="bold"), align="left")]
    parts += details
    if left > 1:
        name = f"{log.name} (one of {log.of} logs)" if log.of > 1 else log.name
        parts.append(Text(name or "no log yet", style="dim", no_wrap=True, overflow="ellipsis"))
        shown = log.lines[-(left - 1) :]
        parts += [Text(line, no_wrap=True, overflow="ellipsis") for line in shown]
        parts += [Text("")] * (left - 1 - len(shown))
    return parts


def _details(view: RunView) -> list[RenderableType]:
    firing = [(f"{one.severity}", f"{one.rule}: {one.text}") for one in view.alerts]
    known = dict(status_rows(view.status))
    rows = [(label, known[label]) for label in _DETAILS if label in known]
    return [
        Text.assemble(
            (f"{label:<18}", "bold red" if (label, text) in firing else "dim"),
            text.replace("\n", " "),
            no_wrap=True,
            overflow="ellipsis",
        )
        for label, text in [*firing, *rows]
    ]
