"""Reads logs to where they end now, and goes on from there later; the only reader of log files.

A file is known by (device, inode): a rotated or replaced file is read from its beginning, a file
that shrank was truncated and is read anew. Offsets can be kept as JSON between processes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

from submitrain.monitor.diagnose.model import Finding
from submitrain.monitor.diagnose.scan import BLOCK_BYTES, LogScan, with_survivals

Feed = Callable[[bytes, int], None]


@dataclass(frozen=True)
class Position:
    """How far a file has been read: ``offset`` bytes, ``line`` is the number of the next line."""

    device: int
    inode: int
    offset: int = 0
    line: int = 1


@dataclass
class Tail:
    """Reads what was appended to one log since the last look."""

    path: Path
    position: Position | None = None

    def read(self, scan: LogScan, *, to_end: bool = False) -> int:
        """Feed whole new lines to ``scan``; returns the bytes read.

        An unfinished last line waits for its end, unless ``to_end`` says that nothing follows. A
        file that cannot be opened gives nothing now.
        """
        try:
            file = self.path.open("rb", buffering=0)
        except OSError:
            return 0
        with file:
            status = os.fstat(file.fileno())
            start = self.position
            if start is None or not _same_file(start, status):
                start = Position(status.st_dev, status.st_ino)
            scan.line = start.line
            end = start.offset
            for block, offset in blocks(file, start.offset, to_end=to_end):
                scan.feed(block, offset)
                end = offset + len(block)
            self.position = Position(status.st_dev, status.st_ino, end, scan.line)
            return end - start.offset


def _same_file(position: Position, status: os.stat_result) -> bool:
    same = (position.device, position.inode) == (status.st_dev, status.st_ino)
    return same and status.st_size >= position.offset


def blocks(file: BinaryIO, start: int, *, to_end: bool) -> Iterator[tuple[bytes, int]]:
    """Blocks of whole lines and their offsets; a line larger than a block comes in pieces."""
    file.seek(start)
    offset, rest = start, b""
    while chunk := file.read(BLOCK_BYTES - len(rest)):
        data = rest + chunk
        cut = max(data.rfind(b"\n"), data.rfind(b"\r")) + 1
        if not cut and len(data) >= BLOCK_BYTES:
            cut = data.rfind(b" ") + 1 or len(data)
        if cut:
            yield data[:cut], offset
        offset, rest = offset + cut, data[cut:]
    if rest and to_end:
        yield rest, offset


def load_positions(state: dict[str, Any]) -> dict[str, Position]:
    """Positions by path from ``dump_positions``; entries that make no sense are left out."""
    found = {}
    for path, value in state.items():
        try:
            found[path] = Position(**value)
        except TypeError:
            continue
    return found


def dump_positions(tails: dict[str, Tail]) -> dict[str, Any]:
    """Positions by path as plain values, for a state file."""
    return {path: asdict(tail.position) for path, tail in tails.items() if tail.position}


def scan_file(
    path: Path, *, name: str | None = None, last_bytes: int | None = None
) -> list[Finding]:
    """Findings of a log, marked where training went on; ``last_bytes``: of its end only.

    Line numbers then count from there.

    Raises:
        OSError: the file cannot be read.
    """
    scan = LogScan(name or str(path))
    with path.open("rb", buffering=0) as file:
        size = os.fstat(file.fileno()).st_size
        start = 0 if last_bytes is None else max(0, size - last_bytes)
        for block, offset in blocks(file, start, to_end=True):
            scan.feed(block, offset)

        def read_at(offset: int, size: int) -> bytes:
            file.seek(offset)
            return file.read(size)

        return with_survivals(scan.findings(), read_at)


def scan_text(text: str, *, name: str = "") -> list[Finding]:
    """Findings of a log that is at hand as text."""
    data = text.encode("utf-8", "surrogateescape")
    scan = LogScan(name)
    for start in range(0, len(data), BLOCK_BYTES):
        scan.feed(data[start : start + BLOCK_BYTES], start)
    return with_survivals(scan.findings(), lambda offset, size: data[offset : offset + size])
