"""``python -m monitor report``: one HTML file, and a summary on the terminal."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from submitrain.errors import UserError
from submitrain.monitor.diagnose.cli import newest_job, run_folder
from submitrain.monitor.report.page import render, report_page
from submitrain.monitor.report.read import REPORT_NAME, Scheduler, read_report
from submitrain.run_folder import RunDir, write_text_atomically
from submitrain.slurm.client import ask
from submitrain.status import job_views


def main(options: argparse.Namespace) -> int:
    """Write the page, print the summary."""
    folder = run_folder(options.run, Path(options.runs_dir))
    scheduler = Scheduler(
        times=ask, job=newest_job, view=lambda run: job_views([run])[run.folder.name]
    )
    try:
        report = read_report(folder, scheduler)
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
