"""What the two command lines share: commands with examples, loaded late; errors as lines.

Light: every start of a command line imports it.

Where a command that takes long tells what it does: a terminal, or lines for logs and pipes.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from typing import Protocol

from rich.console import Console
from rich.status import Status

from submitrain.errors import SubmitrainError

# ruff: noqa: T201 - printing is what a command line does


Handler = Callable[[argparse.Namespace], int]
Commands = Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]]
"""By name: what it does, and what adds its arguments."""
Examples = Iterable[tuple[str, str]]


def carry_out(options: argparse.Namespace) -> int:
    """Run the command that was parsed; returns the exit code, whatever goes wrong."""
    handler: Handler = options.handler
    try:
        return handler(options)
    except SubmitrainError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 1
    except BrokenPipeError:
        # `... | head` closed our output: nothing is left to say, not even at exit.
        sys.stderr.close()
        return 0


def add_commands(
    parser: argparse.ArgumentParser,
    package: str,
    commands: Commands,
    examples: Mapping[str, Examples],
) -> None:
    """Give the parser its commands."""
    added = parser.add_subparsers(
        title="commands", metavar="COMMAND", required=True, prog=f"python -m {package}"
    )
    for name, (summary, configure) in commands.items():
        command = added.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=example_text(package, examples.get(name, ())),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        configure(command)


def lazy(module: str, name: str = "main") -> Handler:
    """A function of a module that is imported only when its command runs."""

    def handler(options: argparse.Namespace) -> int:
        command: Handler = getattr(importlib.import_module(module), name)
        return command(options)

    return handler


def example_text(package: str, examples: Examples) -> str | None:
    """The end of a command's help; None without an example."""
    lines = [(f"  python -m {package} {words}", what) for words, what in examples]
    if not lines:
        return None
    width = max(len(line) for line, _ in lines)
    return "\n".join(["examples:", *(f"{line:<{width}}  {what}".rstrip() for line, what in lines)])


# ruff: noqa: T201 - printing is what a command line does


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
