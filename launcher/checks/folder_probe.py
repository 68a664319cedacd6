"""Looks at one folder, as a process of its own: its file system may hang it for good.

Usage: ``python probe.py FOLDER``. Prints one JSON object a line as it gets on, so that what came
before a hang is known: ``path``, ``space``, ``write``, ``fsync``. Needs the standard library only.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

WRITTEN_BYTES = 1 << 20


def main(folder: str) -> None:
    """Look, and tell after every step."""
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
    try:
        fsync_s = write(path)
    except OSError as error:
        tell(error=error.strerror or str(error), errno=error.errno)
    else:
        tell(fsync_s=fsync_s)


def write(path: Path) -> float:
    """Write and remove a file of 1 MiB; returns the seconds of its fsync."""
    target = path / f".submitrain-assess-{os.getpid()}-{time.monotonic_ns()}"
    descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        left = memoryview(bytes(WRITTEN_BYTES))
        while left:
            left = left[os.write(descriptor, left) :]
        began = time.monotonic()
        os.fsync(descriptor)
        return time.monotonic() - began
    finally:
        os.close(descriptor)
        target.unlink()


def tell(**facts: Any) -> None:
    """One line; the reader may get no more than this."""
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main(sys.argv[1])
