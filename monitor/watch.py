"""Watches one run or all of a folder until told to stop: looks, sends, and outlives every hiccup.

What must not be forgotten is on disk after every look; this process holds nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from monitor.alerts.sender import Errand, Sender, pings_of
from monitor.alerts.settings import Settings, read_settings
from monitor.look import Looker, Report
from monitor.sights import Sight, see
from train.errors import UserError
from train.rundir import RunDir

LAST_SENDING_S = 120.0
"""How long ``--once`` waits for its messages to be sent."""
LAST_LOOKS_S = 1.0
"""Seconds between looks at a run that has ended, until its last message is sent."""
SHORTEST_NAP_S = 0.05


@dataclass
class Watcher:
    """``find`` lists run folders; ``show`` gets every report, ``complain`` what went wrong."""

    find: Callable[[], Sequence[Path]]
    looker: Looker
    show: Callable[[Report], None]
    complain: Callable[[str], None]
    sender: Sender = field(default_factory=Sender)
    clock: Callable[[], float] = time.time
    nap: Callable[[float], None] = time.sleep
    """Waits so many seconds, or until it is worth another look."""
    leaves: Callable[[Sequence[Report]], bool] = lambda reports: False
    """Whether to go after a look, although not all is told."""

    def __post_init__(self) -> None:
        self._closed: dict[Path, tuple[float, ...]] = {}
        self._complained: dict[str, str] = {}

    def tick(self) -> list[Report]:
        """Look at every run that is not closed, then send what is due."""
        folders = [folder for folder in self.find() if self._open(folder)]
        sights = self._see(folders)
        reports = [report for sight in sights if (report := self._look(sight)) is not None]
        for report in reports:
            self.show(report)
        complete = len(reports) == len(folders)
        self._send(reports, ping=complete)
        return reports

    def once(self) -> list[Report]:
        """One look, and everything that follows from it."""
        reports = self.tick()
        if not self.sender.wait(LAST_SENDING_S):
            self.complain("messages are still being sent; the next look goes on with them")
        return reports

    def run(self, *, interval_s: float, until_closed: bool) -> None:
        """Look every ``interval_s`` seconds; ``until_closed``: until all runs have ended."""
        while True:
            began = time.monotonic()
            reports = self.tick()
            if until_closed and all(report.closed for report in reports) and reports:
                self.sender.wait(LAST_SENDING_S)
                return
            if self.leaves(reports):
                self.sender.wait(LAST_SENDING_S)
                return
            nap_s = began + interval_s - time.monotonic()
            waits = [report.due_in_s for report in reports if report.due_in_s is not None]
            if until_closed and all(report.ended for report in reports):
                waits.append(LAST_LOOKS_S)
            # What has been grouped for long enough goes out then, however long the interval is.
            self.nap(max(SHORTEST_NAP_S, min([nap_s, *(one + SHORTEST_NAP_S for one in waits)])))

    def _see(self, folders: Sequence[Path]) -> list[Sight]:
        try:
            return list(see(folders, self._trouble))
        except OSError as error:
            self._complain_once("", f"run folders cannot be read: {error}; trying again")
            return []

    def _trouble(self, folder: Path, error: Exception) -> None:
        self._complain_once(folder.name, f"{folder.name}: {error}")

    def _look(self, sight: Sight) -> Report | None:
        """Look at one run; its trouble is said once, and does not keep the others waiting."""
        folder = sight.evidence.folder
        try:
            report = self.looker.look(sight, self.clock())
        except (UserError, OSError) as error:
            self._complain_once(folder.name, f"{folder.name}: {error}")
            return None
        self._complained.pop(folder.name, None)
        if report.closed:
            self._closed[folder] = stamps(folder)
        return report

    def _open(self, folder: Path) -> bool:
        """Whether a run has to be looked at: not closed, or touched since it was."""
        if folder not in self._closed:
            return True
        if stamps(folder) == self._closed[folder]:
            return False
        del self._closed[folder]
        return True

    def _send(self, reports: Sequence[Report], *, ping: bool) -> None:
        outboxes = [
            (report.files, report.settings)
            for report in reports
            if report.unsent and report.settings is not None
        ]
        self.sender.start(Errand(outboxes, pings_of(self._settings(reports)) if ping else ()))

    def _settings(self, reports: Sequence[Report]) -> list[Settings]:
        """Settings that may name a dead-man URL: the monitor lives also where no run does."""
        if self.looker.config is not None:
            return [read_settings(self.looker.config)]
        return [report.settings for report in reports if report.settings is not None]

    def _complain_once(self, about: str, text: str) -> None:
        if self._complained.get(about) != text:
            self._complained[about] = text
            self.complain(text)


def stamps(folder: Path) -> tuple[float, ...]:
    """Times of the files that change when a run is resumed, goes on, or ends."""
    run_dir = RunDir(folder)
    found = []
    for path in (run_dir.submissions, run_dir.attempts, run_dir.summary):
        try:
            found.append(path.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)
