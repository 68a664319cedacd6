"""The facts about one attempt, as recorded by ranks, launcher and scheduler. Pure data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from submitrain.launcher.supervisor.hang import Hang
from submitrain.monitor.diagnose import Diagnosis, FailureClass, Trust, kind_of_exception
from submitrain.rollbacks import Rollback
from submitrain.slurm.jobs import JobInfo


class StopCause(StrEnum):
    """Why the supervisor asked the ranks to stop."""

    CANCEL = "cancel"
    TERMINATED = "terminated"
    WARNED = "warned"
    TIME_LIMIT = "time_limit"


@dataclass(frozen=True)
class RankFailure:
    """What a rank wrote about its own failure."""

    rank: int
    exception: str
    message: str
    where: str
    """file:line of the innermost frame that is the user's or ours."""
    step: int
    phase: str
    victim: bool
    """It looks like the consequence of another rank's death."""
    t: float
    host: str = ""

    @property
    def kind(self) -> str:
        """Name of the exception's class without its module."""
        return self.exception.rpartition(".")[2]

    @property
    def reason(self) -> FailureClass:
        """What kind of failure its words speak of."""
        return kind_of_exception(self.exception, self.message)

    @classmethod
    def from_event(cls, event: Mapping[str, Any], host: str = "") -> RankFailure:
        """Read a ``failure`` event; missing fields become empty."""
        return cls(
            rank=int(event.get("rank", -1)),
            exception=str(event.get("exception", "")),
            message=str(event.get("message", "")),
            where=str(event.get("where", "")),
            step=int(event.get("step") or 0),
            phase=str(event.get("phase", "")),
            victim=bool(event.get("victim", False)),
            t=float(event.get("t", 0.0)),
            host=host,
        )


@dataclass(frozen=True)
class RankExit:
    """How a rank's process ended; a negative code is the signal that killed it."""

    rank: int
    code: int
    host: str = ""
    ours: bool = False
    """It ended after the launcher had begun to end the others."""

    @property
    def died(self) -> bool:
        """Whether this end is neither a finish nor a stop."""
        return self.code not in (0, 85)


@dataclass(frozen=True)
class AttemptEvidence:
    """Everything ``decide`` may know about one attempt."""

    attempt: int
    world_size: int
    first_step: int | None = None
    """Step from which it started (0, or the restored checkpoint's), None if it never said."""
    last_step: int | None = None
    """Highest step that any rank recorded."""
    started: frozenset[int] = frozenset()
    hosts: Mapping[int, str] = field(default_factory=dict)
    """Where ranks run, as far as they said it."""
    finished: frozenset[int] = frozenset()
    stopped: frozenset[int] = frozenset()
    signalled: tuple[int, ...] = ()
    """Ranks that stopped because a TERM reached themselves."""
    failures: tuple[RankFailure, ...] = ()
    """In the order of time."""
    exits: tuple[RankExit, ...] = ()
    """In the order in which they were seen."""
    launcher_code: int | None = None
    """srun's own exit code; None for local ranks."""
    launcher_error: str = ""
    """Last lines that srun wrote."""
    lost_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes of the attempt that are gone for certain, and how that showed."""
    accused_nodes: Mapping[str, str] = field(default_factory=dict)
    """Nodes on which the launcher could not start ranks, and why."""
    terminated: bool = False
    """TERM or INT reached the supervisor."""
    ended_for: str | None = None
    """slurmstepd's reason for ending the step (``PREEMPTION``, ``JOB REQUEUE``, ``TIME LIMIT``,
    ``NODE FAILURE``; nothing for scancel); None when it did not say that it ended it."""
    stop_asked: StopCause | None = None
    """Why the supervisor asked the ranks to stop, if it did."""
    noticed_at: float | None = None
    """When the first rank had left or the ranks were asked to (UTC seconds)."""
    cancel_requested: bool = False
    job: JobInfo | None = None
    """The scheduler's view after the attempt; None without a scheduler."""
    diagnosis: Diagnosis | None = None
    """What logs and records of the attempt say; None where it ended as it should."""
    hang: Hang | None = None
    """The hang for which the ranks were ended, or for which one ended itself."""
    has_queue: bool = False
    """A scheduler owns the job; without its view (``job``) it did not answer."""
    restarts_before: int = 0
    """The job's restart count when this attempt began."""
    remaining_s: float | None = None
    """Seconds to the job's time limit; None when there is none."""
    rollback: Rollback | None = None
    """What the ranks asked to be undone and left out, if they did."""
    lead_s: float = 0.0
    """Seconds before the limit at which ranks are asked to stop."""
    unsaved: tuple[int, ...] = ()
    """Steps whose checkpoint could not be written; training went on."""
    lost_lines: int = 0
    """Event lines that ranks could not write."""

    @property
    def write_losses(self) -> str:
        """What a bad file system cost in this attempt, as the end of a sentence; often nothing."""
        parts = []
        if self.unsaved:
            steps = ", ".join(map(str, self.unsaved[:8]))
            steps += " ..." if len(self.unsaved) > 8 else ""
            parts.append(f"{len(self.unsaved)} checkpoints (step {steps})")
        if self.lost_lines:
            parts.append(f"{self.lost_lines} event lines")
        return f"; could not be written: {' and '.join(parts)}" if parts else ""

    @property
    def host_memory_ran_out(self) -> bool:
        """Whether the kernel or slurmstepd says that it killed a process for want of memory."""
        if self.diagnosis is None or self.diagnosis.kind is not FailureClass.HOST_OOM:
            return False
        return self.diagnosis.evidence[0].trust >= Trust.KERNEL

    @property
    def all_finished(self) -> bool:
        """Whether every rank recorded its finish."""
        return self.finished >= frozenset(range(self.world_size))

    @property
    def all_stopped(self) -> bool:
        """Whether every rank recorded that it saved and stopped (or had finished)."""
        done = self.stopped | self.finished
        return bool(self.stopped) and done >= frozenset(range(self.world_size))

    @property
    def own_failure(self) -> RankFailure | None:
        """The first failure that is not the consequence of another rank's death."""
        return next((one for one in self.failures if not one.victim), None)

    @property
    def unexplained_exit(self) -> RankExit | None:
        """The first rank that died by itself without a word: victims write a record first."""
        told = {failure.rank for failure in self.failures}
        dead = (one for one in self.exits if one.died and not one.ours and one.rank not in told)
        return next(dead, None)

    @property
    def refused_exits(self) -> tuple[RankExit, ...]:
        """Ranks that ended by themselves before they said that they exist."""
        dead = [one for one in self.exits if one.died and not one.ours]
        return tuple(one for one in dead if one.rank not in self.started)

    @property
    def culprit_rank(self) -> int | None:
        """The rank whose log is worth showing: the first that failed by itself, else that died."""
        if self.all_finished or self.all_stopped:
            return None
        if self.hang is not None and self.hang.rank is not None:
            return self.hang.rank
        own = [failure.rank for failure in self.failures if not failure.victim]
        dead = [one.rank for one in self.exits if one.died and not one.ours]
        victims = [failure.rank for failure in self.failures]
        return next(iter([*own, *dead, *victims]), None)

    def end_fields(self) -> dict[str, Any]:
        """What the line at the end of an attempt says of it, small at any world size."""
        job, diagnosis = self.job, self.diagnosis
        summary = None
        if diagnosis is not None:
            lines = ("evidence", "victims", "notes")
            summary = {k: value for k, value in diagnosis.as_json().items() if k not in lines}
        facts = {
            "world_size": self.world_size,
            "started": len(self.started),
            "finished": len(self.finished),
            "stopped": len(self.stopped),
            "failures": [asdict(failure) for failure in self.failures[:8]],
            "diagnosis": summary,
            "hang": asdict(self.hang) if self.hang else None,
            "launcher_code": self.launcher_code,
            "terminated": self.terminated,
            "ended_for": self.ended_for,
            "stop_asked": str(self.stop_asked) if self.stop_asked else None,
            "cancel_requested": self.cancel_requested,
            "job_state": job.state if job else None,
            "preempted_at": job.preempted_at if job else None,
            "restarts": job.restarts if job else None,
            "restarts_before": self.restarts_before,
        }
        return {
            "first_step": self.first_step,
            "last_step": self.last_step,
            "noticed_at": self.noticed_at,
            "exit_codes": {str(one.rank): one.code for one in self.exits},
            "evidence": facts,
        }
