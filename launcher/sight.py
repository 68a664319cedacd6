"""What is to be seen of a run, read bit by bit: a live view reads only what was appended."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from launcher.progress import notable
from launcher.records import EventTail
from monitor.report.model import Curves
from train.events import Kind
from train.rundir import RunDir

NOTES = 6
"""Remarkable events that are kept, the newest."""
_SAID = frozenset({Kind.VALIDATION, Kind.CHECKPOINT, Kind.FAILURE})
"""In the curve, in the status, or in what the attempt's end says."""


@dataclass
class Sight:
    """Curves, remarkable events and the places where attempts went on."""

    folder: Path
    curves: Curves = field(default_factory=Curves)
    notes: deque[str] = field(default_factory=lambda: deque(maxlen=NOTES))
    resumed: dict[int, int] = field(default_factory=dict)
    """Step from which an attempt went on, to that attempt."""

    def __post_init__(self) -> None:
        run_dir = RunDir(self.folder)
        self._tails = [EventTail(path, 0) for path in (run_dir.events(0), run_dir.attempts)]
        self._newest = [0, 0]

    def look(self) -> Sight:
        """Take in what was written since the last look."""
        found = [event for index in range(len(self._tails)) for event in self._read(index)]
        for event in sorted(found, key=lambda event: float(event.get("t") or 0.0)):
            self._take(event)
        return self

    def _read(self, index: int) -> list[dict[str, Any]]:
        """New events of one file, without those that a fenced attempt wrote too late."""
        kept = []
        for event in self._tails[index].read():
            attempt = event.get("attempt")
            number = attempt if isinstance(attempt, int) else self._newest[index]
            if number >= self._newest[index]:
                self._newest[index] = number
                kept.append(event)
        return kept

    def _take(self, event: dict[str, Any]) -> None:
        self.curves.take(event)
        if event["kind"] == Kind.RESUME and isinstance(event.get("step"), int):
            self.resumed[event["step"]] = int(event.get("attempt") or 0)
        if event["kind"] not in _SAID and (line := notable(event)):
            self.notes.append(line)
