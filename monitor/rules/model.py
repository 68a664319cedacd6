"""The words of the rules: findings, severities, and which finding makes another one moot. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from train.config.alerts import MonitorConfig

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
