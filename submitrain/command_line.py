"""What the two command lines share: commands with examples, loaded late; errors as lines.

Light: every start of a command line imports it.
"""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from submitrain.errors import SubmitrainError

Handler = Callable[[argparse.Namespace], int]
Commands = Mapping[str, tuple[str, Callable[[argparse.ArgumentParser], None]]]
"""By name: what it does, and what adds its arguments."""
Examples = Iterable[tuple[str, str]]


def run_command(options: argparse.Namespace) -> int:
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


def prefer_installed() -> None:
    """``python -m`` puts the working directory first: a user's ``queue.py`` there must not win."""
    here, root = Path.cwd(), Path(__file__).resolve().parent.parent
    if sys.path and Path(sys.path[0] or ".").resolve() == here != root:
        sys.path.append(sys.path.pop(0))
