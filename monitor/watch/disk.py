"""Examines the file system of a folder: free space, and whether a file can be written.

statvfs knows no quota, so a file is written. A file system that hangs would hang its caller for
ever: a child process does it, and is given up after a time limit.
"""

from __future__ import annotations

import errno
import json
import os
import select
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from submitrain.monitor.watch.observe import DiskFacts

LIMIT_S = 10.0
WRITTEN_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
"""What a writer meets that says something about the disk; missing rights say nothing."""


def read_disk(folder: Path, *, limit_s: float = LIMIT_S) -> DiskFacts:
    """Free space and a test-write in ``folder`` (or the nearest folder above that exists)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(folder, writer)
    os.close(writer)
    try:
        # The answer is shorter than PIPE_BUF, so it comes as a whole (pipe(7)).
        ready, _, _ = select.select([reader], [], [], limit_s)
        text = os.read(reader, 65536) if ready else None
    finally:
        os.close(reader)
        _reap(child)
    if text is None:
        return DiskFacts(str(folder), answered=False, problem=f"no answer within {limit_s:g} s")
    try:
        return DiskFacts(**json.loads(text))
    except ValueError:
        return DiskFacts(str(folder), answered=False, problem="it could not be examined")


def _answer(folder: Path, writer: int) -> NoReturn:
    """In the child: examine, answer, exit."""
    try:
        # What the parent holds (locks, sockets) must not live on in a child that hangs.
        keep = os.dup2(writer, 3)
        os.closerange(4, 4096)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.write(keep, json.dumps(_examine(folder)).encode())
    finally:
        os._exit(0)


def _examine(folder: Path) -> dict[str, Any]:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    space = os.statvfs(folder)
    found = {"path": str(folder), "free_bytes": space.f_bavail * space.f_frsize, "problem": ""}
    test = folder / ".monitor-write-test"
    try:
        descriptor = os.open(test, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            left = WRITTEN_BYTES
            while left:
                left -= os.write(descriptor, bytes(left))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            found["problem"] = os.strerror(error.errno or 0)
    finally:
        with suppress(OSError):
            test.unlink()
    return found


def _reap(child: int) -> None:
    """End the child; one that hangs in the kernel cannot be killed now and is left to init."""
    os.kill(child, signal.SIGKILL)
    for _ in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
