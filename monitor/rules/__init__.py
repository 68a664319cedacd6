"""Judges a snapshot of a run: what is wrong, how bad, and what to do. Pure.

Every rule answers in three values: findings (it fires), nothing (it does not), or "cannot tell"; an
alert neither begins nor ends on what cannot be told.
"""

from __future__ import annotations

from monitor.rules.life import crash_loop, failed, finished, queue, requeued
from monitor.rules.model import MUTED_BY, Finding, Limits, Rule, Severity, Unknown, Verdicts
from monitor.rules.progress import hang, straggler, throughput
from monitor.rules.training import checkpoint, disk, loss
from monitor.snapshot import Snapshot

__all__ = [
    "MUTED_BY",
    "RULES",
    "Finding",
    "Limits",
    "Rule",
    "Severity",
    "Unknown",
    "Verdicts",
    "judge",
]

RULES = {
    Rule.HANG: hang,
    Rule.STRAGGLER: straggler,
    Rule.THROUGHPUT: throughput,
    Rule.LOSS: loss,
    Rule.CHECKPOINT: checkpoint,
    Rule.DISK: disk,
    Rule.CRASH_LOOP: crash_loop,
    Rule.FAILED: failed,
    Rule.REQUEUED: requeued,
    Rule.QUEUE: queue,
    Rule.FINISHED: finished,
}


def judge(snapshot: Snapshot, limits: Limits) -> Verdicts:
    """What every rule says of a run."""
    found: list[Finding] = []
    unknown: dict[Rule, str] = {}
    for rule, check in RULES.items():
        answer = check(snapshot, limits)
        if isinstance(answer, Unknown):
            unknown[rule] = answer.why
        else:
            found.extend(answer)
    return Verdicts(tuple(found), unknown)
