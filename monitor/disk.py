"""Looks at the file system beneath a folder: free space, and whether a file can be written.

statvfs knows no quota, so a file is written. A file system that hangs would hang its caller for
ever: a child process looks, and is given up after a time limit.
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

from monitor.snapshot import DiskFacts

LIMIT_S = 10.0
WRITTEN_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
"""What a writer meets that says something about the disk; missing rights say nothing."""


def look_at_disk(folder: Path, *, limit_s: float = LIMIT_S) -> DiskFacts:
    """Free space and a test-write in ``folder`` (or the nearest folder above that exists)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(folder, writer)
    os.close(writer)
    try:
        text = _read(reader, limit_s)
    finally:
        os.close(reader)
        _end(child)
    if text is None:
        return DiskFacts(str(folder), answered=False, problem=f"no answer within {limit_s:g} s")
    try:
        value = json.loads(text)
        return DiskFacts(value["path"], value["free_bytes"], value["problem"])
    except (ValueError, KeyError):
        return DiskFacts(str(folder), answered=False, problem="it could not be looked at")


def _answer(folder: Path, writer: int) -> None:
    """In the child: look, answer, leave; never returns."""
    try:
        # What the parent holds (locks, sockets) must not live on in a child that hangs.
        keep = os.dup2(writer, 3)
        os.closerange(4, 4096)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.write(keep, json.dumps(_look(folder)).encode())
    finally:
        os._exit(0)


def _look(folder: Path) -> dict[str, object]:
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


def _read(reader: int, limit_s: float) -> str | None:
    deadline, parts = time.monotonic() + limit_s, list[bytes]()
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            return None
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)
    return None


def _end(child: int) -> None:
    """Reap the child; one that hangs in the kernel cannot be killed now and is left to init."""
    os.kill(child, signal.SIGKILL)
    for _ in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.01)
