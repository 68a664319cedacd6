"""Real text that every machine has: functions of Python's own standard library.

A sample is a function: the prompt is its signature and docstring, the answer its code. Needs no
network; the same Python version always gives the same samples in the same order. Reading takes two
or three seconds, once: the tokens are kept.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import textwrap
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from submitrain.errors import DataError
from submitrain.imports import gc_paused

Function = tuple[str, str]
"""Signature with docstring, and the code that follows."""

SPLITS = ("train", "validation")
VALIDATION_SHARE = 0.05
"""Share of the modules that only the ``validation`` split sees."""
_SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
)
_MAX_CHARS = 6000
"""Longest function taken: the few longer ones would only be cut."""


def library_folder() -> Path:
    """Folder of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def library_functions(split: str) -> tuple[Function, ...]:
    """The functions of the ``train`` or ``validation`` split.

    Raises:
        DataError: another split, or a Python without sources.
    """
    if split not in SPLITS:
        raise DataError(
            f"dataset.split: python_stdlib has {' and '.join(SPLITS)}, got {split!r}; slices such "
            "as train[:50%] are allowed"
        )
    if not next(modules(library_folder()), None):
        raise DataError(
            f"dataset: python_stdlib: no Python sources in {library_folder()}; next: use a "
            "Python that ships its sources, or your own data with dataset.dataset_name"
        )
    return _library()[split]


@cache
def _library() -> dict[str, tuple[Function, ...]]:
    """Functions by split. A module belongs to one split, and so does a function's text."""
    folder = library_folder()
    found: dict[str, dict[Function, None]] = {split: {} for split in SPLITS}
    # A syntax tree is tens of thousands of objects and no cycle: collecting takes much of the time.
    with gc_paused():
        for path in modules(folder):
            digest = hashlib.sha256(path.relative_to(folder).as_posix().encode()).digest()
            held_out = int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64
            functions = functions_in(path.read_text("utf-8", errors="replace"))
            found["validation" if held_out else "train"] |= dict.fromkeys(functions)
    kept = [function for function in found["validation"] if function not in found["train"]]
    return {"train": tuple(found["train"]), "validation": tuple(kept)}


def modules(folder: Path) -> Iterator[Path]:
    """Python files below ``folder``, tests excepted, always in the same order."""
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def functions_in(source: str) -> list[Function]:
    """Every function in ``source`` that has a docstring and code, in order of appearance."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines = source.splitlines(keepends=True)
    pairs = (_split_function(node, lines) for node in _definitions(tree))
    return [pair for pair in pairs if pair is not None]


def _definitions(node: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    """Functions among the statements below ``node``; expressions hold none and are not visited."""
    for block in ("body", "orelse", "handlers", "finalbody"):
        for child in getattr(node, block, ()):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                yield child
            yield from _definitions(child)


def _split_function(
    node: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]
) -> Function | None:
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
