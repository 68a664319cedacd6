"""How a run is doing: a pure function of its run folder and of what the scheduler says of its job.

A terminal state needs the run folder's word. The scheduler's silence is ``unknown``, never an end.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from monitor.evidence import Event, RunEvidence
from train.events import Kind

USER_ERRORS = frozenset({"UserError", "ConfigError", "DataError", "ClusterError"})
"""Exceptions by which a rank says that the user's input is wrong (train.errors)."""
_RECENT_STEPS = 50


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
    """How often the run went back and left data out."""
    skipped_steps: int = 0
    """Steps without an update among the events at the end of rank 0's file."""
    ckpt_interval_s: float | None = None
    """Seconds between checkpoints, where that is automatic and measured."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "state": str(self.state)}


def status_of(evidence: RunEvidence, job: JobView) -> RunStatus:
    """Conclude from a run folder and the newest job's state how the run is doing."""
    state, why = _conclude(evidence, job)
    steps = [event for event in evidence.tail if event["kind"] == Kind.STEP]
    last = steps[-1] if steps else {}
    validation = _last(evidence.tail, Kind.VALIDATION)
    step, total = _step(evidence), _total_steps(evidence)
    return RunStatus(
        run_id=evidence.folder.name,
        folder=str(evidence.folder),
        state=state,
        why=why,
        cluster=str(evidence.record.get("cluster", "unknown")),
        job_ids=tuple(str(line.get("job_id")) for line in evidence.submissions),
        attempt=evidence.newest_attempt,
        step=step,
        total_steps=total,
        loss=_number(last.get("loss")),
        validation_loss=_number(validation.get("loss")),
        lr=_number(last.get("lr")),
        tokens_per_s=_number(last.get("tokens_per_s")),
        eta_s=None if state.ended else _eta_s(steps, step, total),
        submitted_at=_time(evidence.submission),
        last_activity_at=_time(evidence.tail[-1]) if evidence.tail else None,
        checkpoints=evidence.checkpoints,
        user_error=state is RunState.FAILED and _is_user_error(evidence),
        rollbacks=evidence.rollbacks,
        skipped_steps=_skipped(evidence),
        ckpt_interval_s=_newest(evidence.tail, "ckpt_interval_s"),
    )


def _skipped(evidence: RunEvidence) -> int:
    """Steps whose update was left out; what a later attempt computed again counts as it ended."""
    skipped: dict[int, bool] = {}
    for event in evidence.tail:
        step = event.get("step")
        if isinstance(step, int) and event["kind"] == Kind.STEP:
            skipped[step] = False
        elif isinstance(step, int) and event["kind"] == Kind.ANOMALY:
            skipped[step] = event.get("action") == "skipped"
    return sum(skipped.values())


def _is_user_error(evidence: RunEvidence) -> bool:
    """Whether the supervisor, or the first rank that failed by itself, blames the user's input."""
    if (evidence.summary or {}).get("cause") == "user_error":
        return True
    first = first_failure(evidence.failures)
    return first is not None and str(first.get("exception")).rpartition(".")[2] in USER_ERRORS


def first_failure(failures: Iterable[Event]) -> Event | None:
    """The failure that came first and was no consequence of another rank's."""
    own = [event for event in failures if not event.get("victim")]
    return own[0] if own else next(iter(failures), None)


def _conclude(evidence: RunEvidence, job: JobView) -> tuple[RunState, str]:
    if ended_by_summary(evidence):
        return _from_summary(evidence.summary or {})
    if evidence.submission is None:
        return RunState.UNKNOWN, "nothing was submitted for this run folder"
    if job.state is JobState.PENDING:
        return RunState.QUEUED, job.detail or "waits in the queue"
    if job.state is JobState.RUNNING:
        return _alive(evidence)
    if job.state is JobState.UNKNOWN:
        return RunState.UNKNOWN, job.detail or "the scheduler does not answer"
    return _vanished(evidence, job)


def ended_by_summary(evidence: RunEvidence) -> bool:
    """Whether the supervisor wrote that the run has ended; "requeued" is no end."""
    return evidence.summary is not None and evidence.summary.get("state") in _ENDED


def _from_summary(summary: Event) -> tuple[RunState, str]:
    state = RunState(str(summary["state"]))
    why = "" if state is RunState.FINISHED else summary.get("explanation") or summary.get("cause")
    return state, str(why or "")


def _alive(evidence: RunEvidence) -> tuple[RunState, str]:
    if evidence.cancel_requested:
        return RunState.RUNNING, "cancelled: saves and stops"
    before = (evidence.submission or {}).get("attempt", 0)
    if evidence.newest_attempt <= before:
        return RunState.STARTING, "waits for its supervisor"
    now = [event for event in evidence.tail if event.get("attempt") == evidence.newest_attempt]
    if not now:
        return RunState.STARTING, "waits for its ranks"
    phase = next((str(event["phase"]) for event in reversed(now) if event.get("phase")), "")
    stepped = any(event["kind"] == Kind.STEP for event in now)
    return (RunState.RUNNING, phase) if stepped else (RunState.STARTING, phase or "import")


def _vanished(evidence: RunEvidence, job: JobView) -> tuple[RunState, str]:
    """The job is gone and its supervisor left no summary: killed, most likely."""
    world = next(
        (
            int(line["world_size"])
            for line in reversed(evidence.attempts)
            if line["kind"] == Kind.ATTEMPT_START and isinstance(line.get("world_size"), int)
        ),
        0,
    )
    if world and evidence.finished_ranks >= world:
        return RunState.FINISHED, "all ranks finished; the supervisor left no summary"
    if evidence.cancel_requested:
        return RunState.CANCELLED, "cancelled"
    detail = f" ({job.detail})" if job.detail else ""
    return RunState.FAILED, f"the job ended without a word{detail}: killed from outside?"


def _step(evidence: RunEvidence) -> int:
    for event in reversed(evidence.tail):
        if isinstance(event.get("step"), int):
            return int(event["step"])
    return 0


def _total_steps(evidence: RunEvidence) -> int | None:
    for event in reversed(evidence.tail):
        if isinstance(event.get("total_steps"), int):
            return int(event["total_steps"])
    planned = evidence.record.get("total_steps")
    return planned if isinstance(planned, int) else None


def _eta_s(steps: list[Event], step: int, total: int | None) -> float | None:
    recent = [
        value
        for event in steps[-_RECENT_STEPS:]
        if (value := _number(event.get("step_s"))) is not None
    ]
    if total is None or not recent:
        return None
    return round(max(0, total - step) * statistics.median(recent), 1)


def _last(events: Iterable[Event], kind: Kind) -> Event:
    found: Event = {}
    for event in events:
        if event["kind"] == kind:
            found = event
    return found


def _newest(events: tuple[Event, ...], key: str) -> float | None:
    return next((_number(event[key]) for event in reversed(events) if key in event), None)


def _number(value: object) -> float | None:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _time(event: Event | None) -> float | None:
    return _number(event.get("t")) if event else None
