"""The last lines that a rank wrote: for people, and as evidence."""

from __future__ import annotations

import os
from collections.abc import Sequence

from train.rundir import RunDir

LINES = 20
TAIL_BYTES = 64 * 1024
LINE_LENGTH = 500


def log_tail(
    run_dir: RunDir, attempt: int, rank: int, streams: Sequence[str] = ("err", "out")
) -> list[str]:
    """The last lines of the first of a rank's streams that has any; read from the end."""
    for stream in streams:
        try:
            with run_dir.log(attempt, rank, stream).open("rb") as file:
                file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL_BYTES))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            continue
        if lines := [line.rstrip()[:LINE_LENGTH] for line in lines if line.strip()]:
            return lines[-LINES:]
    return []
