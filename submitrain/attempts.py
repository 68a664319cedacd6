"""The attempts of a run: why one ended, what follows, and attempts.jsonl, where both are recorded.

The file has one line at the start and one at the end of every attempt; the supervisor of the moment
is its only writer. Budgets are counted from it, so they survive requeues and the supervisor's own
death. This is the only module that reads it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, TypeVar

from submitrain.events import Event, EventWriter, Kind, integer, mapping, number, read_events
from submitrain.rollbacks import Rollback
from submitrain.run_folder import RunDir

RESUME_HINT = "`python -m launcher resume` continues from the newest checkpoint"


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
    """The supervisor requeues the job; locally: a new attempt with a new time limit."""
    RESUBMIT = "resubmit"
    """A new job on the same run folder, since Slurm does not take this one back."""
    LEAVE = "leave"
    """Exit with an error and touch nothing: Slurm requeues the job itself."""
    STOP = "stop"
    """For good: write the summary, exit with an error."""


@dataclass(frozen=True)
class Decision:
    """What is decided after an attempt; ``explanation`` is one sentence, next step included."""

    cause: Cause
    action: Action
    explanation: str
    nodes: tuple[str, ...] = ()
    """Nodes of this job on which the attempt starts; empty: chosen when it does."""
    exclude: tuple[str, ...] = ()
    """Nodes that the next job of this run shall not get."""
    blamed: Mapping[str, str] = field(default_factory=dict)
    """Nodes that are to blame, and why."""
    rollback: Rollback | None = None
    """What has to be written down before the run goes back."""

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


@dataclass(frozen=True)
class Attempt:
    """One attempt; ``cause``, ``action`` and ``ended_at`` are None while no end is recorded.

    Times are UTC seconds.
    """

    number: int
    job_id: str = ""
    cause: Cause | None = None
    action: Action | None = None
    first_step: int | None = None
    last_step: int | None = None
    started_at: float = 0.0
    ended_at: float | None = None
    """When an end was first recorded: a later line may correct what follows, not when it was."""
    explanation: str = ""
    nodes: tuple[str, ...] = ()
    world_size: int = 0
    """0 where it is not recorded."""
    restarts: int = 0
    """How often Slurm had restarted the job when the attempt began."""
    noticed_at: float | None = None
    """When the supervisor saw the first sign of the end."""
    start: Event = field(default_factory=dict)
    end: Event = field(default_factory=dict)
    """The whole lines; ``end`` is the last one about the attempt's end."""

    @property
    def outcome(self) -> str:
        """``rank_died, then restart``; empty while no end is recorded."""
        return f"{self.cause}, then {self.action}" if self.cause else ""

    @property
    def evidence(self) -> Mapping[str, Any]:
        """What the supervisor's decision was based on; empty where it is not recorded."""
        return mapping(self.end.get("evidence"))

    def as_json(self) -> Event:
        """Plain values for ``--json``, without the lines."""
        values = {name: value for name, value in vars(self).items() if name not in _LINES}
        return {
            "attempt": values.pop("number"),
            **values,
            "nodes": list(self.nodes),
            "cause": str(self.cause or ""),
            "action": str(self.action or ""),
        }


_LINES = frozenset({"start", "end"})


def read_attempts(run_dir: RunDir) -> list[Attempt]:
    """All attempts of a run in order."""
    return attempts_of(read_events(run_dir.attempts))


def attempts_of(events: Iterable[Event]) -> list[Attempt]:
    """Attempts in order, of the lines of attempts.jsonl; the last line about an end holds."""
    found: dict[int, Attempt] = {}
    for event in events:
        attempt = event.get("attempt")
        if not isinstance(attempt, int):
            continue
        if event["kind"] == Kind.ATTEMPT_START:
            found[attempt] = _started(attempt, event)
        elif event["kind"] == Kind.ATTEMPT_END and attempt in found:
            found[attempt] = _ended(found[attempt], event)
    return [found[attempt] for attempt in sorted(found)]


def _started(attempt: int, event: Event) -> Attempt:
    nodes = event.get("nodes")
    return Attempt(
        number=attempt,
        job_id=str(event.get("job_id", "")),
        started_at=number(event.get("t")) or 0.0,
        nodes=tuple(map(str, nodes)) if isinstance(nodes, list | tuple) else (),
        world_size=max(0, integer(event.get("world_size")) or 0),
        restarts=max(0, integer(event.get("restart_count")) or 0),
        start=event,
    )


def _ended(attempt: Attempt, event: Event) -> Attempt:
    ended_at = number(event.get("t")) or 0.0
    return replace(
        attempt,
        cause=_member(Cause, event.get("cause"), Cause.LOST),
        action=_member(Action, event.get("action"), Action.STOP),
        first_step=integer(event.get("first_step")),
        last_step=integer(event.get("last_step")),
        ended_at=ended_at if attempt.ended_at is None else attempt.ended_at,
        explanation=str(event.get("explanation", "")),
        noticed_at=number(event.get("noticed_at")),
        end=event,
    )


_Word = TypeVar("_Word", Cause, Action)


def _member(kind: type[_Word], text: object, otherwise: _Word) -> _Word:
    try:
        return kind(str(text))
    except ValueError:
        return otherwise


def attempts_of_jobs(attempts: Iterable[Attempt], job_ids: Sequence[str]) -> list[Attempt]:
    """The attempts of a job and of those that it continues: budgets are counted over them."""
    return [one for one in attempts if one.job_id in job_ids]


SUPERVISOR_RANK = -1


@dataclass(frozen=True)
class AttemptWriter:
    """Writes attempts.jsonl for the supervisor of one job."""

    run_dir: RunDir
    job_id: str

    def start(self, attempt: int, **fields: Any) -> None:
        """Record that an attempt begins; ``fields``: nodes, world_size, restart_count, ends_at."""
        self.note(Kind.ATTEMPT_START, attempt, pid=os.getpid(), host=socket.gethostname(), **fields)

    def end(self, attempt: int, decision: Decision, **fields: Any) -> None:
        """Record how an attempt ended and what follows; ``fields``: what it was decided on."""
        words = {"cause": str(decision.cause), "action": str(decision.action)}
        self.note(Kind.ATTEMPT_END, attempt, **words, explanation=decision.explanation, **fields)

    def note(self, kind: Kind, attempt: int, *, job_id: str = "", **fields: Any) -> None:
        """Append one line."""
        job_id = job_id or self.job_id
        EventWriter(self.run_dir.attempts, SUPERVISOR_RANK, attempt, job_id).write(kind, **fields)

    def close_lost(self) -> list[Attempt]:
        """Write the missing end of attempts whose supervisor vanished; returns what it closed."""
        lost = [one for one in read_attempts(self.run_dir) if one.cause is None]
        for one in lost:
            first, last = recorded_steps(self.run_dir, one.number)
            self.note(
                Kind.ATTEMPT_END,
                one.number,
                job_id=one.job_id,
                cause=str(Cause.LOST),
                action=str(Action.LEAVE if one.job_id == self.job_id else Action.STOP),
                explanation="the supervisor vanished: killed, or its node was lost",
                first_step=first,
                last_step=last,
            )
        return lost


def recorded_steps(run_dir: RunDir, attempt: int) -> tuple[int | None, int | None]:
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
