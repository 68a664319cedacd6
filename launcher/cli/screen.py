"""What a long command shows of its progress, on a terminal or as lines in logs and pipes."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack

from rich.console import Console

PLAIN_EVERY_S = 15.0


class Screen:
    """Lines that stay, and below them, on a terminal, one that is replaced.

    Everything goes to standard error: standard output holds the report alone. Without a stack,
    which ends the replaced line, nothing is shown at all.
    """

    def __init__(self, stack: ExitStack | None) -> None:
        self._terminal = Console(stderr=True)
        self._quiet = stack is None
        self._shown_at = time.monotonic()
        self._status = None
        if stack is not None and self._terminal.is_terminal:
            self._status = stack.enter_context(self._terminal.status("starts"))

    def say(self, line: str) -> None:
        """Print a line that stays."""
        if self._status is not None:
            self._terminal.print(line, markup=False, highlight=False)
        elif not self._quiet:
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()
        self._shown_at = time.monotonic()

    def doing(self, text: str) -> None:
        """Say what goes on now; without a terminal at most every ``PLAIN_EVERY_S`` seconds."""
        if self._status is not None:
            self._status.update(text)
        elif time.monotonic() - self._shown_at >= PLAIN_EVERY_S:
            self.say(f"  {text}")
