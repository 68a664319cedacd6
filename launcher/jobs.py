"""The jobs behind run folders: how they are, and signals to them. One query for many runs."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monitor.process import ProcessRef
from monitor.sights import see
from monitor.slurm import ask
from monitor.status import RunStatus
from train.errors import ClusterError

_SCANCEL_TIMEOUT_S = 60.0


def look(folders: Iterable[Path]) -> list[RunStatus]:
    """Status of the runs in these folders, with one query of the scheduler for all of them."""
    return [sight.status for sight in see(folders)]


def cancel_job(submission: Mapping[str, Any]) -> None:
    """Cancel the job of a submission for good.

    Raises:
        ClusterError: the scheduler, or the job's host, cannot be asked from here.
    """
    if submission.get("cluster") == "slurm":
        _scancel(str(submission["job_id"]))
    else:
        _terminate(submission)


def terminate_job(submission: Mapping[str, Any]) -> None:
    """Send TERM to supervisor and ranks, as a shutdown would; raises like ``cancel_job``."""
    if submission.get("cluster") == "slurm":
        _scancel("--signal=TERM", "--full", str(submission["job_id"]))
    else:
        _terminate(submission)


def _scancel(*arguments: str) -> None:
    answer = ask(["scancel", *arguments], timeout_s=_SCANCEL_TIMEOUT_S)
    if answer.code != 0:
        raise ClusterError(
            f"cancel: scancel {' '.join(arguments)} failed: {answer.error or 'no answer'}; "
            "try again when the scheduler answers"
        )


def _terminate(submission: Mapping[str, Any]) -> None:
    process = ProcessRef.from_json(submission.get("process"))
    if process is None:
        raise ClusterError("cancel: no process was recorded for this run")
    if process.alive() is None:
        raise ClusterError(f"cancel: the run is on {process.host}; cancel it there")
    process.send_signal(signal.SIGTERM)
