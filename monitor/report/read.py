"""Reads what a report rests on from the run folder; asks no scheduler by itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from monitor.alerts.store import AlertFiles
from monitor.diagnose.model import Diagnosis
from monitor.diagnose.run import diagnose_run
from monitor.evidence import RunEvidence, read_evidence
from monitor.goodput import Goodput
from monitor.goodput_read import rank_events, read_goodput
from monitor.preflight import read_preflights
from monitor.report.model import Curves, Report, alert_rows, report_of
from monitor.slurm import Ask, JobInfo
from monitor.status import JobState, JobView, RunState, status_of
from train.errors import SubmitrainError
from train.events import read_events
from train.rundir import RunDir

_UNHEARD = JobView(JobState.UNKNOWN, "no end is recorded: it runs, waits, or was killed")
REPORT_NAME = "report.html"
"""In ``reports/``, unless another name is asked for."""
AskJob = Callable[[Path], JobInfo | None]
AskView = Callable[[RunEvidence], JobView]


@dataclass(frozen=True)
class Scheduler:
    """How to ask about the run's jobs; the default asks nobody."""

    times: Ask | None = None
    job: AskJob | None = None
    view: AskView | None = None
    """Whether the newest job waits, runs or has ended."""


def read_report(folder: Path, scheduler: Scheduler | None = None) -> Report:
    """Everything about the run in a folder, as of now.

    Raises:
        OSError: a file of the run folder is there and cannot be read.
    """
    asked = scheduler or Scheduler()
    run_dir = RunDir(folder)
    evidence = read_evidence(folder)
    status = status_of(evidence, asked.view(evidence) if asked.view else _UNHEARD)
    curves = Curves()
    for event in rank_events(run_dir.events(0)):
        curves.take(event)
    deliveries = AlertFiles.of(folder).deliveries
    waits = status.state is RunState.QUEUED
    goodput: Goodput = read_goodput(
        folder, ended=status.state.ended, pending=waits, run=asked.times
    )
    return report_of(
        evidence,
        status,
        curves,
        goodput,
        alerts=alert_rows(read_events(run_dir.alerts), read_events(deliveries)),
        preflights=read_preflights(folder),
        diagnosis=_diagnosis(folder, evidence, asked),
        config=_text(run_dir.config),
    )


def _diagnosis(folder: Path, evidence: RunEvidence, asked: Scheduler) -> Diagnosis | None:
    """Only of a run that failed: elsewhere there is nothing to explain."""
    if (evidence.summary or {}).get("state") != "failed" or not evidence.newest_attempt:
        return None
    try:
        return diagnose_run(folder, job=asked.job(folder) if asked.job else None)
    except (SubmitrainError, OSError):
        return None


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
