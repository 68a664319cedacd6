"""Measures one folder in a process of its own, which its file system may hang for good.

Usage: ``python folder_probe.py FOLDER``. Prints one JSON object per line as it goes, so that what
came before a hang is known. Standard library only; imports nothing of submitrain.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

WRITTEN_BYTES = 2**20
"""More than a full disk has left in its last block."""


def main(folder: str) -> None:
    """Measure the folder, or the first one above it that exists."""
    path = Path(folder)
    while not path.is_dir() and path != path.parent:
        path = path.parent
    tell(path=str(path.resolve()), exists=path == Path(folder))
    space = os.statvfs(path)
    tell(
        free_bytes=space.f_bavail * space.f_frsize,
        total_bytes=space.f_blocks * space.f_frsize,
        free_inodes=space.f_favail,
        total_inodes=space.f_files,
    )
    target = path / f".submitrain-assess-{os.getpid()}-{time.monotonic_ns()}"
    try:
        tell(fsync_s=write_synced(target, bytes(WRITTEN_BYTES)))
    except OSError as error:
        tell(error=error.strerror or str(error), errno=error.errno)
    finally:
        target.unlink(missing_ok=True)


def write_synced(path: Path, data: bytes) -> float:
    """Write a file and flush it to its disk or server; returns the seconds of the fsync."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
    try:
        left = memoryview(data)
        while left:
            left = left[os.write(descriptor, left) :]
        began = time.monotonic()
        os.fsync(descriptor)
        return time.monotonic() - began
    finally:
        os.close(descriptor)


def tell(**facts: Any) -> None:
    """One line; the reader may get no more than this."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
