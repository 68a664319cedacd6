"""attempts.jsonl: one line at the start and one at the end of every attempt of a run.

The supervisor of the moment is the only writer. Budgets are counted from here, so they survive
requeues and the supervisor's own death.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from launcher.outcome import Action, Cause, Decision
from train.events import EventWriter, Kind, read_events
from train.rundir import RunDir

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
