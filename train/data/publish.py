"""Folders that one process builds and many use: published whole by an atomic rename, or not at all.

Waiting for one is polling the file system, so it may take longer than any collective's time limit.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from train.rundir import fsync_dir

POLL_S = 0.2
T = TypeVar("T")


def build_once(
    folder: Path,
    *,
    builder: bool,
    find: Callable[[Path], T | None],
    build: Callable[[Path], None],
    waiting: Callable[[], None],
) -> T:
    """What ``find`` sees in ``folder``; the builder makes it first where it sees nothing.

    The others call ``waiting`` at every look, which may raise to give up. Two builders (two runs
    with one cache) do no harm: the first one to finish wins.
    """
    found = find(folder)
    while found is None and not builder:
        waiting()
        time.sleep(POLL_S)
        _refresh(folder.parent)
        found = find(folder)
    if found is None:
        _publish(folder, find, build)
        found = find(folder)
        if found is None:
            raise OSError(f"{folder} was written but cannot be read back")
    return found


def _publish(folder: Path, find: Callable[[Path], T | None], build: Callable[[Path], None]) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
    try:
        build(scratch)
        _make_durable(scratch)
        scratch.chmod(0o755)
        _put(scratch, folder, find)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    fsync_dir(folder.parent)


def _put(scratch: Path, folder: Path, find: Callable[[Path], T | None]) -> None:
    """Rename into place; a folder that is there but not whole makes way."""
    try:
        scratch.rename(folder)
    except OSError:
        if find(folder) is not None:
            return
        broken = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".broken-{folder.name}."))
        folder.rename(broken / folder.name)
        shutil.rmtree(broken, ignore_errors=True)
        scratch.rename(folder)


def _make_durable(folder: Path) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    fsync_dir(folder)


def _refresh(folder: Path) -> None:
    """Listing a folder makes NFS ask the server; a plain stat may see an old negative entry."""
    if folder.is_dir():
        with os.scandir(folder) as entries:
            next(entries, None)
