"""``python -m monitor report``: one HTML file, and a summary on the terminal."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from monitor.diagnose.cli import newest_job, run_folder
from monitor.evidence import RunEvidence
from monitor.jobs import job_views
from monitor.report.page import report_page
from monitor.report.read import REPORT_NAME, Scheduler, read_report
from monitor.report.text import render
from monitor.slurm import ask
from monitor.status import JobView
from train.errors import UserError
from train.rundir import RunDir, write_text_atomically


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
