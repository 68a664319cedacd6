"""What the report of a run rests on, read from the run folder; asks no scheduler by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt
from submitrain.errors import SubmitrainError
from submitrain.events import Event, Kind, number, read_events
from submitrain.monitor.accounting.goodput import Goodput, read_goodput
from submitrain.monitor.accounting.records import rank_events
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.monitor.diagnose.model import Diagnosis
from submitrain.monitor.diagnose.run import diagnose_run
from submitrain.preflight_results import PreflightResult, read_preflights
from submitrain.run_facts import RunEvidence, read_evidence
from submitrain.run_folder import RunDir
from submitrain.slurm.client import Ask
from submitrain.slurm.jobs import JobInfo
from submitrain.status import JobState, JobView, RunState, RunStatus, status_of

REPORT_NAME = "report.html"
"""In ``reports/``, unless another name is asked for."""
MOST_POINTS = 2000

Point = tuple[float, float]


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most ``most`` points in order: of each stretch the lowest and the highest.

    First and last point stay. Points that are not finite are left out of a curve that is thinned.
    """
    if len(points) <= most:
        return list(points)
    finite = [point for point in points if math.isfinite(point[1])]
    if len(finite) <= most:
        return finite
    inner, stretches = finite[1:-1], max(1, (most - 2) // 2)
    kept = [finite[0]]
    for index in range(stretches):
        start, end = (len(inner) * edge // stretches for edge in (index, index + 1))
        indices = range(start, end)
        if not indices:
            continue
        extremes = {
            min(indices, key=lambda at: inner[at][1]),
            max(indices, key=lambda at: inner[at][1]),
        }
        kept += [inner[at] for at in sorted(extremes)]
    return [*kept, finite[-1]]


GIB = 2**30
MOST_ROWS = 200
"""Rows of a table; of more, the newest."""
_CHECKPOINTS = {
    Kind.CHECKPOINT: "published",
    Kind.CHECKPOINT_FAILED: "failed",
    Kind.CHECKPOINT_REJECTED: "rejected",
}
_CURVES = {"loss": 1.0, "lr": 1.0, "tokens_per_s": 1.0, "mem_bytes": GIB, "grad_norm": 1.0}
"""Field of a step event, and what its values are divided by."""


@dataclass
class Curves:
    """Rank 0's story; of a step that was computed again, the last time holds."""

    values: dict[str, dict[int, float]] = field(
        default_factory=lambda: {name: {} for name in (*_CURVES, "validation")}
    )
    checkpoints: list[Event] = field(default_factory=list)
    anomalies: list[Event] = field(default_factory=list)
    setup: Event = field(default_factory=dict)

    def take(self, event: Event) -> None:
        """Keep what a report needs of one event."""
        kind, step = event["kind"], event.get("step")
        if kind == Kind.STEP and isinstance(step, int):
            for name, unit in _CURVES.items():
                self._keep(name, step, event.get(name), unit)
        elif kind == Kind.VALIDATION and isinstance(step, int):
            self._keep("validation", step, event.get("loss"), 1.0)
        elif kind in _CHECKPOINTS:
            self.checkpoints.append(event)
        elif kind == Kind.ANOMALY:
            self.anomalies.append(event)
        elif kind == Kind.SETUP:
            self.setup = event

    def _keep(self, name: str, step: int, value: object, unit: float) -> None:
        if (found := number(value)) is not None:
            self.values[name][step] = found / unit

    def points(self, name: str) -> list[Point]:
        """A curve by step, thinned."""
        return thin([(float(step), y) for step, y in sorted(self.values[name].items())])


@dataclass(frozen=True)
class Report:
    """Everything that the page and the text show."""

    status: RunStatus
    summary: Event
    record: Event
    setup: Event
    attempts: tuple[Attempt, ...]
    curves: dict[str, list[Point]]
    goodput: Goodput
    checkpoints: tuple[Event, ...]
    """step, what, t, bytes, blocked_s, save_s, reason"""
    anomalies: tuple[Event, ...]
    alerts: tuple[Event, ...]
    """Lines of alerts.jsonl, each with the ``channels`` that took it."""
    preflights: tuple[PreflightResult, ...]
    diagnosis: Diagnosis | None
    config: str

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``; curves are thinned, what is no number is null."""
        return {
            "status": self.status.as_json(),
            "summary": self.summary,
            "record": self.record,
            "setup": self.setup,
            "attempts": [one.as_json() for one in self.attempts],
            "curves": {
                name: [[x, y if math.isfinite(y) else None] for x, y in points]
                for name, points in self.curves.items()
            },
            "goodput": self.goodput.as_json(),
            "checkpoints": list(self.checkpoints),
            "anomalies": list(self.anomalies),
            "alerts": list(self.alerts),
            "preflights": [one.as_json() for one in self.preflights],
            "diagnosis": self.diagnosis.as_json() if self.diagnosis else None,
            "config": self.config,
        }

    def count(self, what: str) -> int:
        """Checkpoints that were published, failed or rejected."""
        return sum(one["what"] == what for one in self.checkpoints)


@dataclass(frozen=True)
class Scheduler:
    """How to ask about the run's jobs; the default asks nobody."""

    times: Ask | None = None
    job: Callable[[Path], JobInfo | None] | None = None
    view: Callable[[RunEvidence], JobView] | None = None
    """Whether the newest job waits, runs or has ended."""


_NOT_ASKED = JobView(JobState.UNKNOWN, "no end is recorded: it runs, waits, or was killed")


def read_report(folder: Path, scheduler: Scheduler | None = None) -> Report:
    """Everything about the run in a folder, as of now.

    Raises:
        OSError: a file of the run folder is there and cannot be read.
    """
    asked = scheduler or Scheduler()
    run_dir = RunDir(folder)
    evidence = read_evidence(folder)
    status = status_of(evidence, asked.view(evidence) if asked.view else _NOT_ASKED)
    curves = Curves()
    for event in rank_events(run_dir.events(0)):
        curves.take(event)
    summary = evidence.summary or {}
    diagnosis = None
    if summary.get("state") == "failed" and evidence.newest_attempt:
        try:
            diagnosis = diagnose_run(folder, job=asked.job(folder) if asked.job else None)
        except (SubmitrainError, OSError):
            diagnosis = None
    try:
        config = run_dir.config.read_text(errors="replace")
    except FileNotFoundError:
        config = ""
    return Report(
        status=status,
        summary=summary,
        record=evidence.record,
        setup=curves.setup,
        attempts=evidence.attempts,
        curves={name: curves.points(name) for name in curves.values},
        goodput=read_goodput(
            folder,
            ended=status.state.ended,
            pending=status.state is RunState.QUEUED,
            run=asked.times,
        ),
        checkpoints=tuple(_checkpoint(event) for event in curves.checkpoints),
        anomalies=tuple(curves.anomalies),
        alerts=tuple(
            alert_rows(read_events(run_dir.alerts), read_events(AlertFiles.of(folder).deliveries))
        ),
        preflights=tuple(read_preflights(folder)),
        diagnosis=diagnosis,
        config=config,
    )


def alert_rows(lines: Iterable[Event], deliveries: Iterable[Event]) -> list[Event]:
    """What was told of the run, in order, with the channels that each message reached."""
    took: dict[object, list[str]] = {}
    for line in deliveries:
        if line.get("outcome") == "sent":
            for key in line.get("entries") or ():
                took.setdefault(key, []).append(str(line.get("channel")))
    kept = ("t", "event", "rule", "subject", "severity", "text", "next_step")
    return [
        {name: line.get(name) for name in kept} | {"channels": took.get(line.get("key"), [])}
        for line in lines
        if line["kind"] == "alert"
    ]


def _checkpoint(event: Event) -> Event:
    kept = ("step", "t", "attempt", "path", "bytes", "blocked_s", "save_s", "reason")
    return {
        "what": _CHECKPOINTS[event["kind"]],
        **{name: event[name] for name in kept if event.get(name) is not None},
    }
