"""Real text that every machine has: functions of Python's own standard library.

A sample is a function: the prompt is its signature and docstring, the answer its code. Needs no
network; the same Python version always gives the same samples in the same order.
"""

from __future__ import annotations

import ast
import hashlib
import os
import sysconfig
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from train.data.samples import Row
from train.errors import DataError

VALIDATION_SHARE = 0.05
"""Share of the modules that only the ``validation`` split sees."""

SPLITS = ("train", "validation")
_SKIPPED = frozenset(
    {"test", "tests", "idlelib", "lib2to3", "turtledemo", "site-packages", "dist-packages"}
)
_MAX_CHARS = 6000
"""Longest function taken: the few longer ones would only be cut."""

Function = tuple[str, str]
"""Signature with docstring, and the code that follows."""


@dataclass(frozen=True)
class StandardLibrary:
    """Functions with docstrings; ``split`` is train or validation."""

    split: str

    @property
    def where(self) -> str:
        """The split and the folder it is from."""
        return f"python_stdlib {self.split} ({library_folder()})"

    def count(self) -> int:
        """Number of functions."""
        return len(_library()[self.split])

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows with prompt and completion."""
        for prompt, completion in _library()[self.split][start:stop]:
            yield {"prompt": prompt, "completion": completion}


def open_library(split: str) -> StandardLibrary:
    """The library's ``train`` or ``validation`` split.

    Raises:
        DataError: another split, or a Python without sources.
    """
    if split not in SPLITS:
        raise DataError(
            f"dataset.split: python_stdlib has {' and '.join(SPLITS)}, got {split!r}; slices such "
            "as train[:50%] are allowed"
        )
    if not next(_modules(library_folder()), None):
        raise DataError(
            f"dataset: python_stdlib: no Python sources in {library_folder()}; next: use a "
            "Python that ships its sources, or your own data with dataset.dataset_name"
        )
    return StandardLibrary(split)


def library_folder() -> Path:
    """Folder of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def functions(source: str) -> list[Function]:
    """Every function in ``source`` that has a docstring and code, in order of appearance."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return []
    lines = source.splitlines(keepends=True)
    pairs = (_pair(node, lines) for node in _definitions(tree))
    return [pair for pair in pairs if pair is not None]


@cache
def _library() -> dict[str, tuple[Function, ...]]:
    """Functions by split. A module belongs to one split, and so does a function's text."""
    found: dict[str, dict[Function, None]] = {split: {} for split in SPLITS}
    folder = library_folder()
    for path in _modules(folder):
        split = "validation" if _is_held_out(path.relative_to(folder)) else "train"
        found[split] |= dict.fromkeys(functions(path.read_text("utf-8", errors="replace")))
    copies = found["validation"].keys() & found["train"].keys()
    kept = [function for function in found["validation"] if function not in copies]
    return {"train": tuple(found["train"]), "validation": tuple(kept)}


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


def _modules(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders[:] = sorted(set(folders) - _SKIPPED)
        yield from (Path(parent, name) for name in sorted(names) if name.endswith(".py"))


def _is_held_out(module: Path) -> bool:
    digest = hashlib.sha256(module.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64
