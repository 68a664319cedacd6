"""Where a command that takes long tells what it does: a terminal, or lines for logs and pipes."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Protocol

from rich.console import Console
from rich.status import Status

PLAIN_EVERY_S = 15.0


class Screen(Protocol):
    """Where a drill or a sweep tells what it does."""

    def say(self, line: str) -> None:
        """A line that stays."""

    def doing(self, text: str) -> None:
        """What goes on now; the next call replaces it."""


class TerminalScreen:
    """A line that is replaced, below lines that stay."""

    def __init__(self, terminal: Console, status: Status) -> None:
        self._terminal, self._status = terminal, status

    def say(self, line: str) -> None:
        """Print above the moving line."""
        self._terminal.print(line, markup=False, highlight=False)

    def doing(self, text: str) -> None:
        """Replace the moving line."""
        self._status.update(text)


class PlainScreen:
    """For logs and pipes: lines that stay, and now and then what goes on."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)
        self._shown_at = time.monotonic()

    def doing(self, text: str) -> None:
        """Print what goes on, every ``PLAIN_EVERY_S`` seconds."""
        if time.monotonic() - self._shown_at >= PLAIN_EVERY_S:
            self.say(f"  {text}")


def make_screen(stack: ExitStack) -> TerminalScreen | PlainScreen:
    """Progress goes to standard error: standard output holds the report alone."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        return PlainScreen()
    return TerminalScreen(terminal, stack.enter_context(terminal.status("starts")))
