"""``python -m monitor diagnose``: reads logs or a run folder, concludes, prints."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from submitrain.errors import UserError
from submitrain.monitor.diagnose.cause import diagnose
from submitrain.monitor.diagnose.model import Diagnosis, Finding
from submitrain.monitor.diagnose.run import diagnose_run
from submitrain.monitor.diagnose.scan import scan_file
from submitrain.run_facts import read_evidence
from submitrain.run_folder import find_run
from submitrain.slurm.client import query_jobs
from submitrain.slurm.jobs import JobInfo

_STDIN = "-"


def render(found: Diagnosis) -> str:
    """A diagnosis as text: class, place, evidence, consequences, what to do, one fact a line."""
    return "\n".join(_lines(found))


def _lines(found: Diagnosis) -> Iterator[str]:
    yield f"{found.kind}  (confidence {found.confidence:.2f})"
    yield f"  {found.summary}"
    if found.rank is not None or found.node:
        rank = "" if found.rank is None else f"rank {found.rank}"
        yield "  where     " + ", ".join(part for part in (rank, found.node) if part)
    yield f"  do        {found.remedy.step.replace('_', ' ')}: {found.remedy.text}"
    for one in found.evidence:
        yield f"  evidence  {one.place or 'text'}  {one.text}"
    for one in found.victims:
        label = "survived" if one.survived else "also"
        yield f"  {label:<9} {one.place or 'text'}  {one.kind}: {one.text}"
    for note in found.notes:
        yield f"  note      {note}"


def main(options: argparse.Namespace) -> int:
    """Print the diagnosis of log files or of a run."""
    targets: list[str] = options.targets
    if len(targets) == 1 and targets[0] != _STDIN and not Path(targets[0]).is_file():
        folder = run_folder(targets[0], Path(options.runs_dir))
        found = diagnose_run(folder, attempt=options.attempt, job=newest_job(folder))
    elif options.attempt is not None:
        raise UserError("--attempt: expected one run folder, got log files")
    else:
        found = diagnose([one for target in targets for one in _scan(target)])
    print(json.dumps(found.as_json(), indent=2) if options.json else render(found))  # noqa: T201
    return 0


def _scan(target: str) -> list[Finding]:
    try:
        if target != _STDIN:
            return scan_file(Path(target))
        # Kept on disk meanwhile: it may be larger than the memory.
        with tempfile.NamedTemporaryFile(prefix="diagnose-") as copy:
            shutil.copyfileobj(sys.stdin.buffer, copy)
            copy.flush()
            return scan_file(Path(copy.name), name="stdin")
    except OSError as error:
        raise UserError(f"{target}: cannot be read: {error.strerror or error}") from error


def run_folder(target: str, runs_dir: Path) -> Path:
    """A run by its folder, its name, the unique beginning of its name, or ``latest``.

    Raises:
        UserError: there is none, or more than one.
    """
    folder = Path(target)
    if any((folder / name).is_file() for name in ("config.yaml", "attempts.jsonl")):
        return folder
    if folder.is_dir():
        raise UserError(f"{target}: expected a log file or a run folder, got a folder without runs")
    try:
        return find_run(target, runs_dir)
    except UserError as error:
        raise UserError(f"{target}: expected a log file or one run: {error}") from error


def newest_job(folder: Path) -> JobInfo | None:
    """What the scheduler says of a Slurm run's newest job; None where nobody can be asked."""
    evidence = read_evidence(folder)
    submission = evidence.submission or {}
    cluster = submission.get("cluster") or evidence.record.get("cluster")
    job_id = str(submission.get("job_id") or "")
    if cluster != "slurm" or not job_id or shutil.which("squeue") is None:
        return None
    return query_jobs([job_id]).get(job_id)
