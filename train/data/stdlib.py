"""Real text that every machine has: functions of Python's own standard library.

A sample is a function: the prompt is its signature and docstring, the answer its code. Needs no
network; the same Python version always gives the same samples in the same order.
"""

from __future__ import annotations

import hashlib
import marshal
import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain, zip_longest
from pathlib import Path

from submitrain.errors import DataError, RunError
from submitrain.processes import stop_signals_blocked
from submitrain.train.data.columns import Row
from submitrain.train.data.functions import Function, modules

VALIDATION_SHARE = 0.05
"""Share of the modules that only the ``validation`` split sees."""

SPLITS = ("train", "validation")
_MAX_READERS = 4
"""Processes that read; with more, starting them takes longer than what they do."""


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
    if not next(modules(library_folder()), None):
        raise DataError(
            f"dataset: python_stdlib: no Python sources in {library_folder()}; next: use a "
            "Python that ships its sources, or your own data with dataset.dataset_name"
        )
    return StandardLibrary(split)


def library_folder() -> Path:
    """Folder of this Python's standard library."""
    return Path(sysconfig.get_path("stdlib"))


def read_ahead() -> None:
    """Begin to read the library in other processes, and return at once."""
    _readers()


@cache
def _library() -> dict[str, tuple[Function, ...]]:
    """Functions by split. A module belongs to one split, and so does a function's text."""
    found: dict[str, dict[Function, None]] = {split: {} for split in SPLITS}
    folder = library_folder()
    for path, functions in zip(modules(folder), _functions(), strict=True):
        split = "validation" if _is_held_out(path.relative_to(folder)) else "train"
        found[split] |= dict.fromkeys(functions)
    copies = found["validation"].keys() & found["train"].keys()
    kept = [function for function in found["validation"] if function not in copies]
    return {"train": tuple(found["train"]), "validation": tuple(kept)}


def _functions() -> Iterator[list[Function]]:
    """The functions of every module, in the modules' order, however many processes read them."""
    outputs = [reader.communicate()[0] for reader in _readers()]
    for reader in _readers():
        if reader.returncode:
            raise RunError(
                f"dataset: python_stdlib: a process that read {library_folder()} ended with exit "
                f"code {reader.returncode}; next: its own message is in this rank's error log"
            )
    in_turn = chain.from_iterable(zip_longest(*map(marshal.loads, outputs)))
    return (functions for functions in in_turn if functions is not None)


@cache
def _readers() -> tuple[subprocess.Popen[bytes], ...]:
    """The processes that read: parsing holds Python's lock, so threads would take turns."""
    program = Path(__file__).with_name("functions.py")
    command = [sys.executable, "-I", "-S", "-W", "ignore", str(program), str(library_folder())]
    count = min(len(os.sched_getaffinity(0)), _MAX_READERS)
    with stop_signals_blocked():
        return tuple(
            subprocess.Popen([*command, str(share), str(count)], stdout=subprocess.PIPE)
            for share in range(count)
        )


def _is_held_out(module: Path) -> bool:
    digest = hashlib.sha256(module.as_posix().encode()).digest()
    return int.from_bytes(digest[:8], "big") < VALIDATION_SHARE * 2**64
