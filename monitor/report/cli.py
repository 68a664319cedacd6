"""Reads what a report rests on from the run folder; asks no scheduler by itself.

``python -m monitor report``: one HTML file, and a summary on the terminal.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from submitrain.errors import SubmitrainError, UserError
from submitrain.events import read_events
from submitrain.monitor.accounting.goodput import Goodput, read_goodput
from submitrain.monitor.accounting.records import rank_events
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.monitor.diagnose.cli import newest_job, run_folder
from submitrain.monitor.diagnose.model import Diagnosis
from submitrain.monitor.diagnose.run import diagnose_run
from submitrain.monitor.report.model import Curves, Report, alert_rows, report_of
from submitrain.monitor.report.page import render, report_page
from submitrain.preflight_results import read_preflights
from submitrain.run_facts import RunEvidence, read_evidence
from submitrain.run_folder import RunDir, write_text_atomically
from submitrain.slurm.client import Ask, JobInfo, ask
from submitrain.status import JobState, JobView, RunState, job_views, status_of

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


def _view(evidence: RunEvidence) -> JobView:
    return job_views([evidence])[evidence.folder.name]


def main(options: argparse.Namespace) -> int:
    """Write the page, print the summary."""
    folder = run_folder(options.run, Path(options.runs_dir))
    try:
        report = read_report(folder, Scheduler(times=ask, job=newest_job, view=_view))
    except OSError as error:
        raise UserError(f"{folder}: cannot be read: {error}") from error
    path = Path(options.html) if options.html else RunDir(folder).reports / REPORT_NAME
    try:
        if not options.html:
            path.parent.mkdir(exist_ok=True)
        write_text_atomically(path, report_page(report))
    except OSError as error:
        reason = error.strerror or error
        raise UserError(f"--html: {path} cannot be written: {reason}; name another file") from error
    text = json.dumps(report.as_json(), indent=2) if options.json else render(report)
    print(text if options.json else f"{text}\n  page         {path}")  # noqa: T201
    return 0
