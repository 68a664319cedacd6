"""Standard streams that lose lines on a full or read-only disk instead of ending the process.

The logs of ranks and supervisor are files of the run folder: with Python's own streams one line of
progress on a full disk is an OSError in the middle of a step. Imports nothing of this project.
"""

from __future__ import annotations

import sys
from contextlib import suppress
from typing import Any, TextIO


class LossyStream:
    """A text stream whose writes never raise OSError; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0
        """Writes that failed."""

    def write(self, text: str) -> int:
        """Write as far as the disk lets us; says that all of it was written."""
        try:
            self._stream.write(text)
        except OSError:
            self.lost += 1
        return len(text)

    def flush(self) -> None:
        """Flush as far as the disk lets us."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def lose_lines_rather_than_the_run() -> None:
    """Make this process's standard output and error lossy."""
    sys.stdout = LossyStream(sys.stdout)
    sys.stderr = LossyStream(sys.stderr)
