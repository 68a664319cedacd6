"""attempts.jsonl: one line at the start and one at the end of every attempt of a run.

The supervisor of the moment is the only writer. Budgets are counted from here, so they survive
requeues and the supervisor's own death.

The words for what became of an attempt and what follows. Pure; imports nothing heavy.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

from submitrain.events import EventWriter, Kind, read_events
from submitrain.run_folder import RunDir

RESUME_HINT = "`python -m launcher resume` goes on from the newest checkpoint"


class Cause(StrEnum):
    """Why an attempt ended."""

    FINISHED = "finished"
    """Every rank recorded its finish."""
    TIME_LIMIT = "time_limit"
    """Stopped because the job's time limit was near."""
    PREEMPTED = "preempted"
    """Slurm takes the nodes for another job."""
    REQUEUED = "requeued"
    """Slurm put the job back into the queue: an administrator did, or a node failed."""
    CANCELLED = "cancelled"
    """The user cancelled the run; nobody may bring it back."""
    TERMINATED = "terminated"
    """The supervisor got TERM or INT, and nothing says who sent it."""
    RANK_DIED = "rank_died"
    """A rank ended without the program being to blame: signal, network, host."""
    HUNG = "hung"
    """A rank made no progress for longer than its phase may take."""
    NODE_LOST = "node_lost"
    """A node of the job is gone: power, network, slurmd."""
    PREFLIGHT = "preflight"
    """Nodes of the job are unfit, and it can have others: found before a rank was started."""
    LAUNCH_FAILED = "launch_failed"
    """Ranks were never started."""
    CONTAINER_ERROR = "container_error"
    """The ranks' container did not start: runtime, image or mount."""
    OUT_OF_MEMORY = "out_of_memory"
    """A rank ran out of device memory."""
    HOST_OUT_OF_MEMORY = "host_out_of_memory"
    """A node's memory, or the job's share of it, did not suffice."""
    PROGRAM_ERROR = "program_error"
    """A rank raised an exception of its own."""
    USER_ERROR = "user_error"
    """The configuration, the data or the requested cluster is wrong."""
    CHECKPOINT_ERROR = "checkpoint_error"
    """No verified checkpoint where one is needed, or none can be written."""
    NOT_FINITE = "not_finite"
    """Loss or gradient norm became NaN or infinite."""
    LOSS_SPIKE = "loss_spike"
    """The loss rose far above the usual, and ``resilience.loss_spike`` asks to go back then."""
    CRASH_LOOP = "crash_loop"
    """Several attempts in a row ended without a new step."""
    FENCED = "fenced"
    """A newer attempt owns the run folder."""
    SUPERVISOR_ERROR = "supervisor_error"
    """The supervisor itself raised an exception."""
    PREDECESSOR = "predecessor"
    """The run that had to finish first (``after``) did not."""
    LOST = "lost"
    """The supervisor itself vanished; its successor wrote this down."""


class Action(StrEnum):
    """What follows."""

    DONE = "done"
    """Success: write the summary, return it."""
    RESTART = "restart"
    """A new attempt in place, in the same allocation."""
    REQUEUE = "requeue"
    """Back into the queue by our own hand; locally: a new attempt with a new time limit."""
    RESUBMIT = "resubmit"
    """A new job on the same run folder, since Slurm does not take this one back."""
    LEAVE = "leave"
    """Exit with an error and touch nothing: Slurm requeues the job itself."""
    STOP = "stop"
    """For good: write the summary, exit with an error."""


@dataclass(frozen=True)
class Decision:
    """Verdict on one attempt; ``explanation`` is one sentence for people, next step included."""

    cause: Cause
    action: Action
    explanation: str

    @property
    def state(self) -> str:
        """State of the run that this leaves behind, for ``summary.json``."""
        if self.action is Action.DONE:
            return "finished"
        if self.action is not Action.STOP:
            return "requeued"
        if self.cause is Cause.CANCELLED:
            return "cancelled"
        return "stopped" if self.cause in STOPPED_CAUSES else "failed"


STOPPED_CAUSES = frozenset(
    {Cause.TERMINATED, Cause.TIME_LIMIT, Cause.PREEMPTED, Cause.REQUEUED, Cause.FENCED}
)
"""Causes that leave a healthy run behind: ``resume`` goes on where it stopped."""


SUPERVISOR_RANK = -1
_Word = TypeVar("_Word", Cause, Action)


@dataclass(frozen=True)
class AttemptRecord:
    """One attempt as attempts.jsonl tells it; ``cause`` None while no end is recorded."""

    attempt: int
    job_id: str
    cause: Cause | None = None
    action: Action | None = None
    first_step: int | None = None
    last_step: int | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    explanation: str = ""
    nodes: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttemptLog:
    """Reads and writes the attempts of one run."""

    run_dir: RunDir

    def read(self) -> list[AttemptRecord]:
        """All attempts in order; the last line about the end of an attempt holds."""
        records: dict[int, AttemptRecord] = {}
        for event in read_events(self.run_dir.attempts):
            number = event.get("attempt")
            if not isinstance(number, int):
                continue
            if event["kind"] == Kind.ATTEMPT_START:
                records[number] = _started(event)
            elif event["kind"] == Kind.ATTEMPT_END and number in records:
                records[number] = _ended(records[number], event)
        return [records[number] for number in sorted(records)]

    def start(self, attempt: int, job_id: str, **fields: Any) -> None:
        """Record that an attempt begins; ``fields``: nodes, world_size, restart_count, ends_at."""
        self._writer(attempt, job_id).write(
            Kind.ATTEMPT_START, pid=os.getpid(), host=socket.gethostname(), **fields
        )

    def end(self, attempt: int, decision: Decision, job_id: str, **fields: Any) -> None:
        """Record how an attempt ended and what follows; ``fields``: what it was decided on."""
        self._writer(attempt, job_id).write(
            Kind.ATTEMPT_END,
            cause=str(decision.cause),
            action=str(decision.action),
            explanation=decision.explanation,
            **fields,
        )

    def close_lost(self, job_id: str) -> list[AttemptRecord]:
        """Write the missing end of attempts whose supervisor vanished; returns what it closed."""
        closed = []
        for record in self.read():
            if record.cause is not None:
                continue
            first, last = steps_of(self.run_dir, record.attempt)
            explanation = "the supervisor vanished: killed, or its node was lost"
            self._writer(record.attempt, record.job_id).write(
                Kind.ATTEMPT_END,
                cause=str(Cause.LOST),
                action=str(Action.LEAVE if record.job_id == job_id else Action.STOP),
                explanation=explanation,
                first_step=first,
                last_step=last,
            )
            closed.append(record)
        return closed

    def _writer(self, attempt: int, job_id: str) -> EventWriter:
        return EventWriter(self.run_dir.attempts, SUPERVISOR_RANK, attempt, job_id)


def of_jobs(records: Sequence[AttemptRecord], job_ids: Sequence[str]) -> list[AttemptRecord]:
    """The attempts of a job and of those that it continues: budgets are counted over them."""
    return [record for record in records if record.job_id in job_ids]


def steps_of(run_dir: RunDir, attempt: int) -> tuple[int | None, int | None]:
    """The step from which rank 0 started in an attempt, and the last one that it recorded."""
    first: int | None = None
    last: int | None = None
    for event in read_events(run_dir.events(0), kinds=frozenset({Kind.RESUME, Kind.STEP})):
        step = event.get("step")
        if event.get("attempt") != attempt or not isinstance(step, int):
            continue
        if first is None:
            first = step if event["kind"] == Kind.RESUME else step - 1
        last = step
    return first, last


def _started(event: dict[str, Any]) -> AttemptRecord:
    return AttemptRecord(
        attempt=event["attempt"],
        job_id=str(event.get("job_id", "")),
        started_at=float(event.get("t", 0.0)),
        nodes=tuple(event.get("nodes") or ()),
    )


def _ended(record: AttemptRecord, event: dict[str, Any]) -> AttemptRecord:
    return AttemptRecord(
        attempt=record.attempt,
        job_id=record.job_id,
        cause=_member(Cause, event.get("cause"), Cause.LOST),
        action=_member(Action, event.get("action"), Action.STOP),
        first_step=event.get("first_step"),
        last_step=event.get("last_step"),
        started_at=record.started_at,
        ended_at=float(event.get("t", 0.0)),
        explanation=str(event.get("explanation", "")),
        nodes=record.nodes,
    )


def _member(kind: type[_Word], text: object, otherwise: _Word) -> _Word:
    try:
        return kind(str(text))
    except ValueError:
        return otherwise
