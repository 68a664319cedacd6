"""A launch from its plan on: run folder, submission, and what a later submission needs to know.

Nothing half-made stays behind (``launcher.folder``), also when the cluster refuses the job.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from launcher.acts import note_launch
from launcher.after import Predecessor, note_successor
from launcher.claims import CLAIM_VARIABLE, Claim, claim_submission
from launcher.folder import folders_of, make_folder, place_checkpoints, remove
from launcher.snapshot import python_path
from launcher.submissions import note_submission
from launcher.submit import Cluster, SubmissionUnknownError, job_environment, submit_slurm
from train.errors import SubmitrainError, UserError
from train.rundir import RunDir

if TYPE_CHECKING:
    from launcher.plan import Plan
    from launcher.prepare import Prepared
    from train.faults import Fault

log = structlog.get_logger()


def start(prepared: Prepared, *, faults: Sequence[Fault] = ()) -> RunDir:
    """Make the run folder and submit the run; ``faults`` is for drills and tests.

    Raises:
        UserError: the folder cannot be written, or the cluster refuses the job.
        RunError: the job did not start.
        SubmissionUnknownError: it stayed open whether the job was taken; the folder is kept.
    """
    with folders_of(prepared.runs_dir):
        run_dir = make_folder(prepared, faults)
        try:
            place_checkpoints(run_dir, prepared)
            with claim_submission(run_dir, "launch") as claim:
                submit(run_dir, prepared.cluster, prepared.plan, claim)
        except SubmissionUnknownError as error:
            note_launch(run_dir, "", error)
            raise
        except SubmitrainError:
            remove(run_dir)
            raise
        note_launch(run_dir, str(claim.job_id))
        if (before := prepared.loaded.config.after) is not None:
            note_successor(Predecessor(Path(before)), run_dir)
    return run_dir


def submit(run_dir: RunDir, cluster: Cluster, plan: Plan, claim: Claim) -> None:
    """Submit a run folder and note the submission in it; used by launch and by resume.

    ``claim`` is the right to do so; the job carries its number.
    """
    record = RecordedLaunch.read(run_dir)
    path = python_path(
        run_dir,
        pinned=record.pinned,
        workdir=record.workdir,
        inherited=os.environ.get("PYTHONPATH", ""),
    )
    environ = {**job_environment(os.environ, path), CLAIM_VARIABLE: str(claim.number)}
    before = run_dir.newest_attempt()
    if cluster.name == "local":
        from launcher.local import start_local

        job = start_local(run_dir, workdir=record.workdir, environ=environ).as_json()
    else:
        parameters = plan.sbatch
        job_id = submit_slurm(run_dir, parameters, workdir=record.workdir, environ=environ)
        job = {"job_id": job_id, "sbatch": parameters}
    claim.job_id = str(job["job_id"])
    note_submission(run_dir, cluster.name, {"attempt": before, **job})
    if plan.watcher_sbatch is not None:
        _submit_watcher(run_dir, plan.watcher_sbatch)


def _submit_watcher(run_dir: RunDir, parameters: Mapping[str, Any]) -> None:
    """The watcher's job; the run is on its way already, and goes on without one."""
    from launcher.watcher_job import ensure_watcher_job

    try:
        ensure_watcher_job(run_dir, parameters)
    except (SubmitrainError, OSError) as error:
        log.warning(
            "no_watcher",
            why=str(error),
            next_step=f"python -m monitor watch {run_dir.run_id}",
        )


@dataclass(frozen=True)
class RecordedLaunch:
    """What a later submission needs to know of the launch."""

    workdir: Path
    pinned: bool
    cluster: str

    @classmethod
    def read(cls, run_dir: RunDir) -> RecordedLaunch:
        """Read it from ``record.json``.

        Raises:
            UserError: there is none, or it is not one of ours.
        """
        import json

        try:
            record = json.loads(run_dir.record.read_text())
            return cls(Path(record["workdir"]), record["code"]["pinned"], record["cluster"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{run_dir.record}: expected the record of a launch, got none"
            ) from error
