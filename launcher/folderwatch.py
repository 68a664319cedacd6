"""Whether the file system of the run folder answers: threads write a small file now and then.

A write to a file system that stands still does not return and cannot be interrupted, so only a
thread of its own can find out. Uses this machine's clock alone.
"""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from time import monotonic

PROBE_EVERY_S = 5.0
JUST_NOW_S = 3.0
STOPPED_S = 4.0
"""A write of a few bytes that takes longer means that the file system stands still."""


@dataclass
class Probe:
    """One write, on its way or returned."""

    folder: Path
    begun: float = field(default_factory=monotonic)
    took_s: float | None = None
    """None until it has returned."""
    good: bool = False
    """Whether the file was written and could be read back (a full disk: it was not)."""

    def __post_init__(self) -> None:
        self._done = threading.Event()
        threading.Thread(target=self._write, name="probe", daemon=True).start()

    def wait(self, seconds: float) -> bool:
        """Whether it returns within these seconds."""
        return self._done.wait(seconds)

    @property
    def age_s(self) -> float:
        """Seconds for which it has been on its way."""
        return monotonic() - self.begun

    @property
    def returned_s(self) -> float | None:
        """Seconds since it returned; None while it has not."""
        return None if self.took_s is None else self.age_s - self.took_s

    def _write(self) -> None:
        path = self.folder / f".probe-{os.getpid()}"
        try:
            with path.open("w+b") as file:
                file.write(b"alive")
                file.flush()
                os.fsync(file.fileno())
            self.good = path.read_bytes() == b"alive"
            path.unlink()
        except OSError:
            self.good = False
        self.took_s = self.age_s
        self._done.set()


@dataclass
class FolderWatch:
    """Follows one folder; never blocks for longer than it is told to."""

    folder: Path
    _probe: Probe | None = None

    def look(self) -> None:
        """Take note of the write that returned; begin another if it is time. At most one waits."""
        probe = self._probe
        if probe is not None and probe.took_s is None:
            return
        if probe is None or probe.age_s >= PROBE_EVERY_S:
            self._begin()

    @property
    def stopped_s(self) -> float:
        """Seconds for which the file system has not answered; 0 while it does."""
        probe = self._probe
        waits = probe is not None and probe.took_s is None and probe.age_s > STOPPED_S
        return probe.age_s if probe is not None and waits else 0.0

    def answers(self, within_s: float) -> Probe | None:
        """A write that has returned just now or does so within these seconds, if there is one."""
        probe = self._probe
        failed = probe is not None and probe.took_s is not None and not probe.good
        if probe is None or failed or (probe.returned_s or 0.0) > JUST_NOW_S:
            probe = self._begin()
        return probe if probe.wait(within_s) else None

    def over_s(self) -> float:
        """Seconds of a stop that has ended since this was asked last; 0 if there was none."""
        probe = self._probe
        if probe is None or probe.took_s is None or probe.took_s <= STOPPED_S:
            return 0.0
        self._begin()
        return probe.took_s

    def _begin(self) -> Probe:
        self._probe = Probe(self.folder)
        return self._probe
