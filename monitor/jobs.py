"""The jobs behind run folders: how they are. One query of the scheduler for many runs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from monitor.evidence import RunEvidence, RunHead
from monitor.process import ProcessRef
from monitor.slurm import JobInfo, query_jobs
from monitor.status import JobState, JobView, ended_by_summary


def job_views(evidence: Iterable[RunEvidence | RunHead]) -> dict[str, JobView]:
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
