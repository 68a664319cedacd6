"""How a run is doing: concluded from its run folder and from what the scheduler says of its job.

A terminal state needs the run folder's word. The scheduler's silence is ``unknown``, never an end.
Many runs are polled with one query of the scheduler.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from submitrain.attempts import Cause
from submitrain.errors import UserError
from submitrain.events import Event, Kind, integer, mapping, number
from submitrain.preflight_results import newest_preflight_text
from submitrain.processes import ProcessRef
from submitrain.run_facts import RunEvidence, RunHead, read_evidence, read_head, time_of
from submitrain.slurm.client import query_jobs
from submitrain.slurm.jobs import JobInfo, explain_reason, reason_text

USER_ERRORS = frozenset({"UserError", "ConfigError", "DataError", "ClusterError"})
"""Exceptions by which a rank says that the user's input is wrong (submitrain.errors)."""


class RunState(StrEnum):
    """Where a run is in its life."""

    QUEUED = "queued"
    STARTING = "starting"
    RUNNING = "running"
    STOPPED = "stopped"
    FINISHED = "finished"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless someone resumes the run."""
        return self in _ENDED


_ENDED = frozenset({RunState.STOPPED, RunState.FINISHED, RunState.FAILED, RunState.CANCELLED})


class JobState(StrEnum):
    """What the scheduler, or the process table, says of the newest job."""

    PENDING = "pending"
    RUNNING = "running"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class JobView:
    """A job as seen from outside; ``detail`` is the scheduler's own word or reason."""

    state: JobState
    detail: str = ""


@dataclass(frozen=True)
class RunStatus:
    """Answer to "how is it doing". Times are UTC seconds; ``eta_s`` counts from now."""

    run_id: str
    folder: str
    state: RunState
    why: str
    cluster: str
    job_ids: tuple[str, ...]
    attempt: int
    step: int
    total_steps: int | None
    loss: float | None
    validation_loss: float | None
    lr: float | None
    tokens_per_s: float | None
    eta_s: float | None
    submitted_at: float | None
    last_activity_at: float | None
    checkpoints: tuple[int, ...]
    user_error: bool
    rollbacks: int = 0
    """How often the run was rolled back and skipped data."""
    skipped_steps: int = 0
    """Steps without an update among the events at the end of rank 0's file."""
    ckpt_interval_s: float | None = None
    """Seconds between checkpoints, where that is automatic and measured."""
    todo: str = ""
    """What to do about ``why``, where something is to be done."""
    nodes: tuple[str, ...] = ()
    """Of the newest attempt."""
    user: str = ""
    account: str = ""
    partition: str = ""
    mem_bytes: float | None = None
    """Peak memory of rank 0's device, of its process where it computes on the CPU."""
    step_s: float | None = None
    last_progress_at: float | None = None
    """When rank 0 last did something that advances it."""
    ended_at: float | None = None
    restarts: Mapping[str, int] = field(default_factory=dict)
    """Attempts that another one followed, by the cause of their end."""
    checkpoint_at: float | None = None
    checkpoint_bytes: int | None = None
    checkpoint_save_s: float | None = None
    """When the newest checkpoint was published, how large it is, how long saving it took."""
    preflight: str = ""
    """Outcome of the last preflight checks."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        values = {**asdict(self), "state": str(self.state)}
        # JSON has no NaN: a number that is not finite becomes its name.
        return {
            name: str(value) if isinstance(value, float) and not math.isfinite(value) else value
            for name, value in values.items()
        }


def status_of(evidence: RunEvidence, job: JobView) -> RunStatus:
    """Conclude from a run folder and the newest job's state how the run is doing."""
    state, why = _state_of(evidence, job)
    last = evidence.newest(Kind.STEP)
    validation = evidence.newest(Kind.VALIDATION)
    saved = evidence.newest(Kind.CHECKPOINT)
    sbatch = next((s for line in evidence.submissions if (s := mapping(line.get("sbatch")))), {})
    who = mapping(evidence.record.get("who"))
    return RunStatus(
        run_id=evidence.folder.name,
        folder=str(evidence.folder),
        state=state,
        why=why,
        cluster=str(evidence.record.get("cluster", "unknown")),
        job_ids=tuple(str(line.get("job_id")) for line in evidence.submissions),
        attempt=evidence.newest_attempt,
        step=evidence.step,
        total_steps=evidence.total_steps,
        loss=number(last.get("loss")),
        validation_loss=number(validation.get("loss")),
        lr=number(last.get("lr")),
        tokens_per_s=number(last.get("tokens_per_s")),
        eta_s=None if state.ended else evidence.eta_s,
        submitted_at=time_of(evidence.submission),
        last_activity_at=time_of(evidence.tail[-1]) if evidence.tail else None,
        checkpoints=evidence.checkpoints,
        user_error=state is RunState.FAILED and _is_user_error(evidence),
        rollbacks=evidence.rollbacks,
        skipped_steps=evidence.skipped_steps,
        ckpt_interval_s=evidence.newest_number("ckpt_interval_s"),
        todo=explain_reason(job.detail)[1] if state is RunState.QUEUED and job.detail else "",
        nodes=evidence.attempts[-1].nodes if evidence.attempts else (),
        user=str(who.get("user") or ""),
        account=str(sbatch.get("account") or ""),
        partition=str(sbatch.get("partition") or ""),
        mem_bytes=evidence.newest_number("mem_bytes"),
        step_s=number(last.get("step_s")),
        last_progress_at=evidence.progress_at,
        ended_at=evidence.ended_at if state.ended else None,
        restarts=evidence.restarts,
        preflight=newest_preflight_text(evidence.attempts),
        checkpoint_at=evidence.checkpoint_at,
        checkpoint_bytes=integer(saved.get("bytes")),
        checkpoint_save_s=number(saved.get("save_s")),
    )


def _is_user_error(evidence: RunEvidence) -> bool:
    """Whether the supervisor, or the first rank that failed by itself, blames the user's input."""
    if (evidence.summary or {}).get("cause") == Cause.USER_ERROR:
        return True
    first = first_failure(evidence.failures)
    return first is not None and str(first.get("exception")).rpartition(".")[2] in USER_ERRORS


def first_failure(failures: Iterable[Event]) -> Event | None:
    """The failure that came first and was no consequence of another rank's."""
    own = [event for event in failures if not event.get("victim")]
    return own[0] if own else next(iter(failures), None)


def _state_of(evidence: RunEvidence, job: JobView) -> tuple[RunState, str]:
    if ended_by_summary(evidence):
        return _from_summary(evidence.summary or {})
    if evidence.submission is None:
        return RunState.UNKNOWN, "nothing was submitted for this run folder"
    if job.state is JobState.PENDING:
        return RunState.QUEUED, reason_text(job.detail) or "waiting in the queue"
    if job.state is JobState.RUNNING:
        return _job_running(evidence)
    if job.state is JobState.UNKNOWN:
        return RunState.UNKNOWN, job.detail or "the scheduler does not answer"
    return _job_gone(evidence, job)


def ended_by_summary(evidence: RunEvidence | RunHead) -> bool:
    """Whether the supervisor wrote that the run has ended; "requeued" is no end."""
    return evidence.summary is not None and evidence.summary.get("state") in _ENDED


def _from_summary(summary: Event) -> tuple[RunState, str]:
    state = RunState(str(summary["state"]))
    why = "" if state is RunState.FINISHED else summary.get("explanation") or summary.get("cause")
    return state, str(why or "")


def _job_running(evidence: RunEvidence) -> tuple[RunState, str]:
    if evidence.cancel_requested:
        return RunState.RUNNING, "cancelled: saving and stopping"
    before = (evidence.submission or {}).get("attempt", 0)
    if evidence.newest_attempt <= before:
        return RunState.STARTING, "waiting for its supervisor"
    now = [event for event in evidence.tail if event.get("attempt") == evidence.newest_attempt]
    if not now:
        begun = any(one.number == evidence.newest_attempt for one in evidence.attempts)
        return RunState.STARTING, "waiting for its ranks" if begun else "running preflight checks"
    phase = next((str(event["phase"]) for event in reversed(now) if event.get("phase")), "")
    stepped = any(event["kind"] == Kind.STEP for event in now)
    return (RunState.RUNNING, phase) if stepped else (RunState.STARTING, phase or "import")


def _job_gone(evidence: RunEvidence, job: JobView) -> tuple[RunState, str]:
    """The job is gone and its supervisor left no summary: killed, most likely."""
    world = next((one.world_size for one in reversed(evidence.attempts) if one.world_size), 0)
    if world and evidence.finished_ranks >= world:
        return RunState.FINISHED, "all ranks finished; the supervisor left no summary"
    if evidence.cancel_requested:
        return RunState.CANCELLED, "cancelled"
    detail = f" ({job.detail})" if job.detail else ""
    return RunState.FAILED, f"the job ended without a summary{detail}: killed from outside?"


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


@dataclass(frozen=True)
class RunObservation:
    """What one poll found of a run."""

    evidence: RunEvidence
    status: RunStatus
    job: JobView


OnReadError = Callable[[Path, Exception], None]
"""Told of a run that cannot be read, which is then left out."""


def read_statuses(folders: Iterable[Path], on_error: OnReadError | None = None) -> list[RunStatus]:
    """Status of these runs, with one query of the scheduler for all of them; raises as below."""
    return [one.status for one in poll_runs(folders, on_error)]


def poll_runs(
    folders: Iterable[Path], on_error: OnReadError | None = None
) -> Iterator[RunObservation]:
    """These runs one after the other: of many, no two have to fit into memory together.

    Raises:
        OSError: one cannot be read, and there is no ``on_error``.
    """
    heads = (read_head_or_report(folder, on_error) for folder in folders)
    return poll_heads([head for head in heads if head is not None], on_error)


def read_head_or_report(folder: Path, on_error: OnReadError | None) -> RunHead | None:
    """The head of a run; None where it cannot be read and ``on_error`` was told."""
    try:
        return read_head(folder)
    except (OSError, UserError) as error:
        if on_error is None:
            raise
        on_error(folder, error)
        return None


def poll_heads(
    heads: Iterable[RunHead], on_error: OnReadError | None = None
) -> Iterator[RunObservation]:
    """The same for runs whose heads were read."""
    heads = list(heads)
    # The job is asked before the folder is read: when it had ended by then, the supervisor's last
    # words are in the folder.
    views = job_views(heads)
    for head in heads:
        try:
            evidence = read_evidence(head.folder)
        except (OSError, UserError) as error:
            if on_error is None:
                raise
            on_error(head.folder, error)
            continue
        job = views[head.folder.name]
        if evidence.submission != head.submission:
            job = JobView(JobState.UNKNOWN, "it was submitted again a moment ago")
        yield RunObservation(evidence, status_of(evidence, job), job)
