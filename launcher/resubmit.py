"""A new job for the same run folder, submitted from inside the old one that Slurm does not requeue.

Like ``resume``, but by the supervisor and with the recorded parameters: after a preemption that
cancels (PreemptMode=CANCEL), a job without ``--requeue``, or a site that forbids it. Only where it
is certain that Slurm does not bring the old job back, and never against a cancellation.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

from launcher.claims import CLAIM_VARIABLE, claim_submission
from launcher.snapshot import python_path
from launcher.start import RecordedLaunch
from launcher.submissions import (
    SUPERVISOR,
    note_submission,
    read_submissions,
    recorded_parameters,
)
from launcher.submit import job_environment, submit_slurm
from monitor.slurm import ask
from train.errors import ClusterError
from train.rundir import RunDir

ONLY_ONCE = ("dependency",)
"""Parameters that were meant for the first job: what it depended on has ended long ago."""
ONLY_ONCE_ADDITIONAL = ("begin", "hold")


def resubmit(
    run_dir: RunDir, job_id: str, exclude: Sequence[str], *, dependency: str | None = None
) -> str:
    """Submit the run again without the nodes in ``exclude``; returns the new job's id.

    ``dependency`` is what the new job waits for (``launcher.after``).

    Raises:
        SubmitrainError: no parameters were recorded, Slurm refuses the job, or a client is
            submitting this run right now.
    """
    launch = RecordedLaunch.read(run_dir)
    parameters = recorded_parameters(read_submissions(run_dir))
    if parameters is None:
        raise ClusterError(
            f"{run_dir.submissions}: expected the parameters of an earlier submission, got none"
        )
    path = python_path(
        run_dir,
        pinned=launch.pinned,
        workdir=launch.workdir,
        inherited=os.environ.get("PYTHONPATH", ""),
    )
    again = without_once(parameters)
    if dependency is not None:
        again["dependency"] = dependency
    with claim_submission(run_dir, f"the supervisor of job {job_id}") as claim:
        environ = {**job_environment(os.environ, path), CLAIM_VARIABLE: str(claim.number)}
        claim.job_id = new_id = submit_slurm(
            run_dir, with_exclusion(again, exclude), workdir=launch.workdir, environ=environ
        )
    # Without the exclusion: strikes expire, and each new job has a list of its own.
    line = {"job_id": new_id, "attempt": run_dir.newest_attempt(), "sbatch": again}
    note_submission(
        run_dir, "slurm", {**line, "via": SUPERVISOR, "after": job_id, "excluded": list(exclude)}
    )
    if run_dir.cancel_request.exists():
        # The user cancelled while sbatch ran, and saw only the old job.
        ask(["scancel", new_id])
    return new_id


def without_once(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters less those that only made sense for the first submission."""
    kept = {key: value for key, value in parameters.items() if key not in ONLY_ONCE}
    additional = kept.get("additional_parameters")
    if isinstance(additional, Mapping):
        kept["additional_parameters"] = {
            key: value for key, value in additional.items() if key not in ONLY_ONCE_ADDITIONAL
        }
    return kept


def with_exclusion(parameters: Mapping[str, Any], exclude: Sequence[str]) -> dict[str, Any]:
    """The parameters with further nodes on ``--exclude``."""
    if not exclude:
        return dict(parameters)
    users = [str(parameters["exclude"])] if parameters.get("exclude") else []
    return {**parameters, "exclude": ",".join([*users, *exclude])}
