"""The jobs behind run folders: how they are, and signals to them. One query for many runs."""

from __future__ import annotations

import signal
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from monitor.evidence import RunEvidence, read_evidence
from monitor.process import ProcessRef
from monitor.slurm import JobInfo, ask, query_jobs
from monitor.status import JobState, JobView, RunStatus, ended_by_summary, status_of
from train.errors import ClusterError

_SCANCEL_TIMEOUT_S = 60.0


def look(folders: Iterable[Path]) -> list[RunStatus]:
    """Status of the runs in these folders, with one query of the scheduler for all of them."""
    # The job is asked before the folder is read again: when it had ended by then, the supervisor's
    # last words are in the folder.
    first = [read_evidence(folder) for folder in folders]
    views = job_views(first)
    second = [
        read_evidence(evidence.folder)
        if not ended_by_summary(evidence) and views[evidence.folder.name].state is JobState.ENDED
        else evidence
        for evidence in first
    ]
    return [status_of(evidence, views[evidence.folder.name]) for evidence in second]


def job_views(evidence: Iterable[RunEvidence]) -> dict[str, JobView]:
    """State of each run's newest job, by run id; one batched query for all Slurm jobs."""
    evidence = list(evidence)
    newest = {item.folder.name: item.submission or {} for item in evidence}
    done = {item.folder.name for item in evidence if ended_by_summary(item)}
    wanted = {
        run_id: str(line["job_id"])
        for run_id, line in newest.items()
        if line.get("cluster") == "slurm" and run_id not in done
    }
    jobs = query_jobs(wanted.values())
    return {
        run_id: view_of_job(jobs[wanted[run_id]]) if run_id in wanted else view_of_process(line)
        for run_id, line in newest.items()
    }


def view_of_job(job: JobInfo) -> JobView:
    """A Slurm job; one that Slurm answered about and does not know has ended."""
    if not job.known:
        return JobView(JobState.UNKNOWN, job.reason)
    if job.pending:
        return JobView(JobState.PENDING, job.reason)
    if job.running or job.state == "COMPLETING":
        return JobView(JobState.RUNNING, job.state)
    return JobView(JobState.ENDED, job.state)


def view_of_process(submission: Mapping[str, Any]) -> JobView:
    """A local job, by its process."""
    process = ProcessRef.from_json(submission.get("process"))
    if process is None:
        return JobView(JobState.UNKNOWN, "no process was recorded")
    alive = process.alive()
    if alive is None:
        return JobView(JobState.UNKNOWN, f"it runs on {process.host}, ask there")
    return JobView(JobState.RUNNING if alive else JobState.ENDED, f"process {process.pid}")


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
