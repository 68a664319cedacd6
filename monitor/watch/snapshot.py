"""What the rules look at: one run at one moment. Pure; times are UTC seconds.

None, and empty tuples, mean "not known": a rule says then that it cannot tell, never that all is
well.

The words of the rules: findings, severities, and which finding makes another one moot. Pure.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from submitrain.attempts import Attempt
from submitrain.config.alerts import MonitorConfig
from submitrain.status import JobState, RunState


@dataclass(frozen=True)
class StepPoint:
    """A recorded step of rank 0; ``loss`` may be NaN or infinite, None where not recorded."""

    step: int
    t: float
    attempt: int
    loss: float | None = None
    step_s: float | None = None
    tokens_per_s: float | None = None


@dataclass(frozen=True)
class RankPoint:
    """A rank of the newest attempt, by its last event; ``progress_at``: when it last advanced."""

    rank: int
    host: str
    phase: str
    step: int
    progress_at: float
    last_event_at: float
    busy: tuple[tuple[int, float], ...] = ()
    """(step, cumulative busy seconds) of its heartbeats; none where it computes on a GPU."""


@dataclass(frozen=True)
class CheckpointFacts:
    """``interval_steps`` None: none are asked for; ``committed_step`` 0: none yet."""

    interval_steps: int | None
    committed_step: int = 0
    committed_bytes: int | None = None
    failed: tuple[int, str] | None = None
    """Step and reason of a save that failed after the last one that did not."""


@dataclass(frozen=True)
class DiskFacts:
    """The file system of the checkpoints; ``problem``: what a test-write met (quota, full)."""

    path: str
    free_bytes: int | None = None
    problem: str = ""
    answered: bool = True
    """False: it did not answer within the time limit."""


@dataclass(frozen=True)
class Samples:
    """What earlier looks measured, oldest first, kept in the monitor's state."""

    rates: tuple[tuple[float, float, int], ...] = ()
    """(time, median tokens/s since the look before, attempt)"""
    free: tuple[tuple[float, float], ...] = ()
    """(time, free bytes)"""
    lags: tuple[tuple[int, dict[int, float]], ...] = ()
    """(attempt, busy seconds of a step by rank)"""
    seen_step: int = 0
    """Newest step of the look before."""
    looked_at: float = 0.0

    LIMIT = 720

    def as_json(self) -> dict[str, Any]:
        """Plain values for the state file."""
        return {
            "rates": self.rates,
            "free": self.free,
            "lags": [
                [attempt, {str(k): v for k, v in ranks.items()}] for attempt, ranks in self.lags
            ],
            "seen_step": self.seen_step,
            "looked_at": self.looked_at,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Samples:
        """Read back what ``as_json`` wrote."""
        return cls(
            rates=tuple((t, rate, attempt) for t, rate, attempt in value.get("rates", ())),
            free=tuple((t, free) for t, free in value.get("free", ())),
            lags=tuple((a, {int(k): v for k, v in r.items()}) for a, r in value.get("lags", ())),
            seen_step=value.get("seen_step", 0),
            looked_at=value.get("looked_at", 0.0),
        )


@dataclass(frozen=True)
class Snapshot:
    """One run at the time ``now``."""

    run_id: str
    now: float
    state: RunState
    why: str
    job: JobState
    attempt: int = 0
    step: int = 0
    total_steps: int | None = None
    steps: tuple[StepPoint, ...] = ()
    ranks: tuple[RankPoint, ...] = ()
    attempts: tuple[Attempt, ...] = ()
    anomalies: tuple[tuple[int, str, str], ...] = ()
    """(step, what, action) that the training itself noticed since the look before"""
    checkpoints: CheckpointFacts = CheckpointFacts(None)
    disk: DiskFacts | None = None
    queued_since: float | None = None
    submitted_at: float | None = None
    diagnosis: str = ""
    remedy: str = ""
    samples: Samples = field(default=Samples())

    @property
    def running(self) -> bool:
        """Whether ranks should be at work."""
        return self.state in (RunState.RUNNING, RunState.STARTING)

    @property
    def attempt_started_at(self) -> float | None:
        """When the newest attempt began, None if its supervisor has not said so."""
        return next((a.started_at for a in self.attempts if a.number == self.attempt), None)


Limits = MonitorConfig
"""From which value on a rule fires: the configuration's ``monitor`` section."""


class Severity(StrEnum):
    """Who should hear of it: someone now, someone today, whoever is interested."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class Rule(StrEnum):
    """What is looked at."""

    HANG = "hang"
    """No rank advances."""
    STRAGGLER = "straggler"
    """One rank computes longer than the best one."""
    THROUGHPUT = "throughput"
    """Fewer tokens/s than usual."""
    LOSS = "loss"
    """Not finite, or far above the usual."""
    CHECKPOINT = "checkpoint"
    """Overdue, or it could not be written."""
    DISK = "disk"
    """Little space left, or soon; or nothing can be written."""
    CRASH_LOOP = "crash_loop"
    """Attempts fail without a new step."""
    FAILED = "failed"
    """The run ended without success."""
    REQUEUED = "requeued"
    """It goes back into the queue too often."""
    QUEUE = "queue"
    """It waits for too long."""
    FINISHED = "finished"
    """It is done."""


@dataclass(frozen=True)
class Finding:
    """Something that holds now. ``subject`` and ``rule`` say what it is about, never how much."""

    rule: Rule
    subject: str
    severity: Severity
    text: str
    """One sentence with the evidence."""
    next_step: str = ""
    for_s: float = 0.0
    """Seconds that it has to hold before it is an alert."""

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {
            "rule": str(self.rule),
            "subject": self.subject,
            "severity": str(self.severity),
            "text": self.text,
            "next_step": self.next_step,
        }


@dataclass(frozen=True)
class Unknown:
    """The rule cannot tell."""

    why: str


Answer = list[Finding] | Unknown


@dataclass(frozen=True)
class Verdicts:
    """What holds, and the rules that could not tell, with the reason."""

    findings: tuple[Finding, ...] = ()
    unknown: dict[Rule, str] = field(default_factory=dict)


MUTED_BY: dict[Rule, frozenset[Rule]] = {
    Rule.HANG: frozenset({Rule.FAILED, Rule.CRASH_LOOP}),
    Rule.STRAGGLER: frozenset({Rule.FAILED, Rule.HANG}),
    Rule.THROUGHPUT: frozenset({Rule.FAILED, Rule.HANG, Rule.STRAGGLER}),
    Rule.CHECKPOINT: frozenset({Rule.FAILED, Rule.HANG, Rule.DISK}),
    Rule.CRASH_LOOP: frozenset({Rule.FAILED}),
    Rule.REQUEUED: frozenset({Rule.FAILED, Rule.CRASH_LOOP}),
    Rule.QUEUE: frozenset({Rule.REQUEUED}),
}
"""Consequences and their causes: while a cause is an alert, its consequences are kept quiet."""
