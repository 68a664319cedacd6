"""``python -m monitor top``: all runs live on a terminal; elsewhere, one frame.

Reads in the background, so that keys are answered while a file system or scheduler is slow.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from rich.console import Console, ConsoleDimensions, RenderableType
from rich.live import Live

from submitrain.errors import UserError
from submitrain.monitor.status import console
from submitrain.monitor.top.screen import (
    Choice,
    Key,
    Log,
    frame,
    key_by_key,
    log_files,
    newest_lines,
    read_keys,
    runs_table,
)
from submitrain.monitor.watch.fleet import Fleet
from submitrain.run_folder import list_runs

T = TypeVar("T")


class Background(Generic[T]):
    """Calls ``read`` every ``interval_s`` seconds, and when poked; keeps the newest value."""

    def __init__(self, read: Callable[[], T], first: T, *, interval_s: float) -> None:
        self._read, self._interval_s = read, interval_s
        self._poked = threading.Event()
        self.value = first
        self.problem = ""
        self.poke = self._poked.set
        """Read again now."""
        threading.Thread(target=self._loop, daemon=True).start()

    def _loop(self) -> None:
        while True:
            try:
                self.value, self.problem = self._read(), ""
            except OSError as error:
                self.problem = str(error)
            self._poked.wait(self._interval_s)
            self._poked.clear()


KEYS_S = 0.25
"""Seconds between two frames while nobody types: also how late a resize is seen."""
LOG_S = 1.0
LOG_LINES = 200
PIPE_WIDTH = 160


def main(options: argparse.Namespace) -> int:
    """Show all runs until ``q``."""
    if options.interval <= 0:
        raise UserError(f"--interval: expected seconds > 0, got {options.interval:g}")
    runs_dir = Path(options.runs_dir).expanduser()
    state_dir = Path(options.state_dir).absolute() if options.state_dir else None
    fleet = Fleet(find=lambda: list_runs(runs_dir), state_dir=state_dir, with_ranks=False)
    screen = console()
    if not (sys.stdin.isatty() and screen.is_terminal and not screen.is_dumb_terminal):
        # One frame for a pipe, a file or a notebook.
        view, screen = fleet.poll(), Console(width=PIPE_WIDTH)
        if view.runs:
            screen.print(runs_table(view.runs, PIPE_WIDTH, view.at))
        else:
            screen.print(f"no runs in {runs_dir.absolute()}", markup=False, soft_wrap=True)
        return 0
    # TERM leaves the terminal as it was.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    _Top(fleet, screen, options.interval).run()
    return 0


class _Top:
    """The loop of frames and keys."""

    def __init__(self, fleet: Fleet, screen: Console, interval_s: float) -> None:
        self._screen = screen
        self._choice = Choice()
        # The first poll comes before the first frame, which so is a whole one.
        self._fleet = Background(fleet.poll, fleet.poll(), interval_s=interval_s)
        self._log = Background(self._read_log, ("", Log()), interval_s=LOG_S)

    def run(self) -> None:
        """Until ``q``, Ctrl-C or the terminal's end."""
        keyboard = sys.stdin.fileno()
        with (
            key_by_key(keyboard),
            Live(console=self._screen, screen=True, auto_refresh=False) as live,
        ):
            while True:
                # Follow the terminal's size: an exported COLUMNS would fix it for ever.
                size = os.get_terminal_size(sys.stdout.fileno())
                if size.columns and size.lines:
                    self._screen.size = ConsoleDimensions(size.columns, size.lines)
                live.update(self._frame(), refresh=True)
                for key in read_keys(keyboard, KEYS_S):
                    if key is Key.QUIT:
                        return
                    self._choice = self._choice.after(key, self._fleet.value.runs)
                    self._log.poke()

    def _frame(self) -> RenderableType:
        view, choice = self._fleet.value, self._choice
        run_id, log = self._log.value
        chosen = view.runs[choice.place(view.runs)].status.run_id if view.runs else ""
        size = (self._screen.width, self._screen.height)
        return frame(view, choice, log if run_id == chosen else Log(), size=size)

    def _read_log(self) -> tuple[str, Log]:
        view, choice = self._fleet.value, self._choice
        if not view.runs:
            return "", Log()
        status = view.runs[choice.place(view.runs)].status
        files = log_files(Path(status.folder))
        if not files:
            return status.run_id, Log()
        path = files[choice.log % len(files)]
        name = str(path.relative_to(status.folder))
        return status.run_id, Log(name, tuple(newest_lines(path, LOG_LINES)), len(files))
