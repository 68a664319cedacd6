"""Functions with docstrings in Python source files. As a program, reads a share of a folder's.

It imports the standard library only and nothing of this project: a process that runs this file
alone (``python -I -S functions.py FOLDER SHARE SHARES``) is at work after a few hundredths of a
second.
"""

from __future__ import annotations

import ast
import gc
import marshal
import os
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

Function = tuple[str, str]
"""Signature with docstring, and the code that follows."""

_SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
)
_MAX_CHARS = 6000
"""Longest function taken: the few longer ones would only be cut."""


def modules(folder: Path) -> Iterator[Path]:
    """Python files below ``folder``, tests excepted, always in the same order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def functions(source: str) -> list[Function]:
    """Every function in ``source`` that has a docstring and code, in order of appearance."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines = source.splitlines(keepends=True)
    pairs = (_pair(node, lines) for node in _definitions(tree))
    return [pair for pair in pairs if pair is not None]


def main() -> None:
    """Write the functions of every ``SHARES``-th module from number ``SHARE`` on to stdout.

    A list for each module, marshalled: reader and writer are the same Python.
    """
    # A syntax tree is tens of thousands of objects and no cycle: collecting takes much of the time.
    gc.disable()
    folder, share, shares = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    paths = list(modules(folder))[share::shares]
    found = [functions(path.read_text("utf-8", errors="replace")) for path in paths]
    with suppress(BrokenPipeError):  # who asked has gone
        marshal.dump(found, sys.stdout.buffer)
        sys.stdout.flush()


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions among the statements below ``node``; expressions hold none and are not visited."""
    for block in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, block, ()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            yield from _definitions(child)


def _pair(node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> Function | None:
    docstring, *code = node.body
    end = docstring.end_lineno
    if ast.get_docstring(node, clean=False) is None or not code or end is None:
        return None
    text = textwrap.dedent("".join(lines[node.lineno - 1 : node.end_lineno]))
    if len(text) > _MAX_CHARS or code[0].lineno == end:
        return None
    whole = text.splitlines(keepends=True)
    split_at = end - node.lineno + 1
    return "".join(whole[:split_at]).rstrip("\n"), "\n" + "".join(whole[split_at:]).strip("\n")


if __name__ == "__main__":
    main()
