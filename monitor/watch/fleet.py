"""The runs of a folder at one moment, polled again and again for a display or an exporter.

A run that has ended is read once and then known by the times of its files; one that ended long ago
is not read at all. The scheduler is asked once a poll for all the others.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from submitrain.errors import UserError
from submitrain.monitor.alerts.state import Alert
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.monitor.watch.observe import RankPoint, Stamps, ranks_of, stamps
from submitrain.run_facts import RunHead
from submitrain.status import (
    JobState,
    OnReadError,
    RunObservation,
    RunState,
    RunStatus,
    ended_by_summary,
    poll_heads,
    read_head_or_report,
)


@dataclass(frozen=True)
class RunView:
    """One run as the newest poll saw it."""

    status: RunStatus
    ranks: tuple[RankPoint, ...] = ()
    """Of the newest attempt, while the run lives."""
    alerts: tuple[Alert, ...] = ()
    """Those that a watcher holds to be firing."""


@dataclass(frozen=True)
class FleetView:
    """What one poll saw. Times are UTC seconds."""

    at: float
    took_s: float
    runs: tuple[RunView, ...] = ()
    """Living ones first, then the newest."""
    over_limit: int = 0
    """Runs that were left out because there are too many."""
    long_ended: int = 0
    """Runs that were left out because they ended long ago."""
    scheduler_answers: bool | None = None
    """None: no run needed it."""
    problems: Mapping[str, str] = field(default_factory=dict)
    """What could not be read, by run id."""


@dataclass
class Fleet:
    """``find`` lists run folders, the oldest first; ``keep_ended_s`` None keeps all that ended."""

    find: Callable[[], Sequence[Path]]
    keep_ended_s: float | None = None
    max_runs: int | None = None
    state_dir: Path | None = None
    with_ranks: bool = True
    """Whether the ranks of living runs are read."""
    clock: Callable[[], float] = time.time

    def __post_init__(self) -> None:
        self._ended: dict[Path, tuple[Stamps, RunView | None]] = {}
        """None: it ended too long ago to be shown."""
        self._alerts: dict[Path, tuple[int, tuple[Alert, ...]]] = {}

    def poll(self) -> FleetView:
        """Read every run once.

        Raises:
            OSError: the runs folder cannot be read now.
        """
        began, now = time.monotonic(), self.clock()
        folders = list(self.find())
        for gone in self._ended.keys() - set(folders):
            del self._ended[gone]
        for gone in self._alerts.keys() - set(folders):
            del self._alerts[gone]
        times = {folder: stamps(folder) for folder in folders}
        problems: dict[str, str] = {}

        def on_error(folder: Path, error: Exception) -> None:
            problems[folder.name] = str(error)

        heads = self._heads(times, now, on_error)
        ended = [view for _, view in self._ended.values() if view and self._recent(view, now)]
        chosen, over = self._chosen(heads, len(ended))
        views, answers = [], []
        for observation in poll_heads(chosen, on_error):
            views.append(self._view(observation, times[observation.evidence.folder]))
            on_slurm = (observation.evidence.submission or {}).get("cluster") == "slurm"
            if on_slurm and not ended_by_summary(observation.evidence):
                answers.append(observation.job.state is not JobState.UNKNOWN)
        views = [one for one in [*views, *ended] if self._recent(one, now)]
        views.sort(key=_order, reverse=True)
        limit = len(views) if self.max_runs is None else self.max_runs
        return FleetView(
            at=now,
            runs=tuple(self._with_alerts(view, problems) for view in views[:limit]),
            over_limit=over + len(views[limit:]),
            long_ended=len(folders) - over - len(views),
            scheduler_answers=any(answers) if answers else None,
            problems=problems,
            took_s=time.monotonic() - began,
        )

    def _heads(self, times: dict[Path, Stamps], now: float, on_error: OnReadError) -> list[RunHead]:
        """Heads of the runs that may have changed, the newest first."""
        heads = []
        for folder, stamp in reversed(times.items()):
            if folder in self._ended and self._ended[folder][0] == stamp:
                continue
            self._ended.pop(folder, None)
            head = read_head_or_report(folder, on_error)
            long_ago = self.keep_ended_s is not None and now - stamp[-1] / 1e9 > self.keep_ended_s
            if head is not None and ended_by_summary(head) and long_ago:
                self._ended[folder] = stamp, None
            elif head is not None:
                heads.append(head)
        return heads

    def _recent(self, view: RunView, now: float) -> bool:
        if self.keep_ended_s is None or not view.status.state.ended:
            return True
        return now - (view.status.ended_at or 0.0) <= self.keep_ended_s

    def _chosen(self, heads: list[RunHead], ended: int) -> tuple[list[RunHead], int]:
        """Those that are read: before a run's folder is, only a summary tells that it has ended."""
        if self.max_runs is None:
            return heads, 0
        living = [head for head in heads if not ended_by_summary(head)]
        others = [head for head in heads if ended_by_summary(head)]
        room = max(0, self.max_runs - len(living[: self.max_runs]) - ended)
        chosen = living[: self.max_runs] + others[:room]
        return chosen, len(heads) - len(chosen)

    def _view(self, observation: RunObservation, stamp: Stamps) -> RunView:
        """What is worth keeping: events of many runs would not fit into memory together."""
        folder, status = observation.evidence.folder, observation.status
        # Only the run's own word lasts: the scheduler's may be that of a job between two lives.
        if status.state.ended and ended_by_summary(observation.evidence):
            view = RunView(status)
            self._ended[folder] = stamp, view
            return view
        return RunView(status, ranks_of(observation.evidence) if self.with_ranks else ())

    def _with_alerts(self, view: RunView, problems: dict[str, str]) -> RunView:
        folder = Path(view.status.folder)
        files = AlertFiles.of(folder, self.state_dir)
        try:
            stamp = files.state.stat().st_mtime_ns
        except OSError:
            return view
        if self._alerts.get(folder, (0, ()))[0] != stamp:
            try:
                state = files.load()
            except (UserError, OSError) as error:
                problems[view.status.run_id] = str(error)
                return view
            self._alerts[folder] = stamp, state.firing if state is not None else ()
        return RunView(view.status, view.ranks, self._alerts[folder][1])


def _order(view: RunView) -> tuple[bool, bool, float, str]:
    one = view.status
    known = one.state is not RunState.UNKNOWN
    return not one.state.ended, known, one.submitted_at or 0.0, one.run_id
