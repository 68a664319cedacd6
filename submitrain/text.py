"""How durations, sizes, counts and times are written for people, and how the end of a file is read.

Imports nothing of this project.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"), (1, "s"))
TAIL_BYTES = 64 * 1024
LONGEST_LINE = 500


def duration(seconds: float | None, *, unknown: str = "") -> str:
    """By the two largest units: ``0.2 s``, ``41 s``, ``4 min 7 s``, ``3 h 12 min``, ``2 d 4 h``."""
    if seconds is None:
        return unknown
    seconds = max(0.0, seconds)
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2g} s"
    place = next(place for place, (size, _) in enumerate(_UNITS) if seconds >= size)
    (size, unit), (lower_size, lower_unit) = _UNITS[place : place + 2]
    whole, rest = divmod(int(seconds), size)
    rest //= lower_size
    return f"{whole} {unit} {rest} {lower_unit}" if rest else f"{whole} {unit}"


def short_duration(seconds: float | None) -> str:
    """For narrow columns: ``42s``, ``12m``, ``3h05``, ``2d04h``."""
    if seconds is None:
        return ""
    value = max(0, round(seconds))
    if value < 60:
        return f"{value}s"
    if value < 3600:
        return f"{value // 60}m"
    if value < 86400:
        return f"{value // 3600}h{value % 3600 // 60:02d}"
    return f"{value // 86400}d{value % 86400 // 3600:02d}h"


def bytes_text(count: float | None, *, unknown: str = "") -> str:
    """Three digits and a decimal unit: ``950 B``, ``1.5 GB``."""
    if count is None:
        return unknown
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} TB"


def count_text(count: float | None, *, unknown: str = "") -> str:
    """``950``, ``12.3k``, ``1.2M``, ``7.0B``: B is 10^9, as for parameters and tokens."""
    if count is None:
        return unknown
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= size:
            return f"{count / size:.1f}{unit}"
    return f"{count:.0f}"


def aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Rows as lines of text; the first ``left`` columns hold words, the others numbers."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(w) if place < left else cell.rjust(w) for place, (cell, w) in pairs]
        lines.append("  ".join(cells).rstrip() + "\n")
    return "".join(lines)


def counted(count: int, noun: str) -> str:
    """``1 node``, ``4 nodes``."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def utc(t: float | None, *, unknown: str = "") -> str:
    """``2026-01-31 23:59:59``, of seconds since the epoch."""
    return unknown if t is None else time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(t))


def read_end(path: Path, limit_bytes: int = TAIL_BYTES) -> bytes:
    """The last ``limit_bytes`` of a file, from the beginning of a line where there is one.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = max(0, file.seek(0, os.SEEK_END) - limit_bytes)
        file.seek(start)
        data = file.read(limit_bytes)
    return data.partition(b"\n")[2] or data if start else data


def last_lines(path: Path, count: int, *, limit_bytes: int = TAIL_BYTES) -> list[str]:
    """The last lines of a log that are not blank, each cut after 500 characters.

    Empty where the file cannot be read.
    """
    try:
        text = read_end(path, limit_bytes).decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip()[:LONGEST_LINE] for line in text.splitlines() if line.strip()][-count:]
