"""The words for what became of an attempt and what follows. Pure; imports nothing heavy."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

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
