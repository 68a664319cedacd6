"""Rules about a run's life: queue, requeues, crash loops, its end. Pure."""

from __future__ import annotations

from monitor.queue_reasons import explained, in_words
from monitor.rules.model import Answer, Finding, Limits, Rule, Severity, Unknown
from monitor.snapshot import AttemptPoint, Snapshot
from monitor.status import JobState, RunState

DAY_S = 86400.0
_NO_FAULT = frozenset(
    {"finished", "time_limit", "preempted", "requeued", "cancelled", "terminated", "fenced"}
)
"""Causes of an attempt's end that say nothing against the program (launcher.outcome.Cause)."""
_SENT_BACK = frozenset({"requeue", "leave"})


def queue(snapshot: Snapshot, limits: Limits) -> Answer:
    """It waits for too long."""
    if snapshot.state is RunState.UNKNOWN:
        return Unknown("the scheduler does not answer")
    if snapshot.state is not RunState.QUEUED:
        return []
    if snapshot.queued_since is None:
        return Unknown("nobody says since when it waits")
    waited_s = snapshot.now - snapshot.queued_since
    if waited_s <= limits.queue_s:
        return []
    _, todo = explained(snapshot.why)
    reason = in_words(snapshot.why) or "no reason given"
    text = f"in the queue for {hours(waited_s)}: {reason}"
    return [Finding(Rule.QUEUE, "run", Severity.WARNING, text, todo)]


def requeued(snapshot: Snapshot, limits: Limits) -> Answer:
    """It goes back into the queue too often; time limits are no fault and do not count."""
    recent = [
        one
        for one in snapshot.attempts
        if one.action in _SENT_BACK
        and one.cause != "time_limit"
        and snapshot.now - (one.ended_at or snapshot.now) <= DAY_S
    ]
    if len(recent) <= limits.requeues_per_day or snapshot.state.ended:
        return []
    causes = ", ".join(sorted({one.cause for one in recent}))
    text = f"{len(recent)} requeues in 24 hours ({causes})"
    todo = "choose a partition or QOS that is preempted less often, or shorter jobs"
    return [Finding(Rule.REQUEUED, "run", Severity.WARNING, text, todo)]


def crash_loop(snapshot: Snapshot, limits: Limits) -> Answer:
    """Attempts in a row that failed, none with a new step."""
    failures = failures_without_progress(snapshot.attempts)
    if len(failures) < limits.crash_loop_restarts or snapshot.state in (
        RunState.FINISHED,
        RunState.CANCELLED,
    ):
        return []
    last = failures[-1]
    text = (
        f"{len(failures)} attempts failed in a row without a new step; the last one: "
        f"{last.explanation or last.cause}"
    )
    todo = f"python -m monitor diagnose {snapshot.run_id}"
    return [Finding(Rule.CRASH_LOOP, "run", Severity.CRITICAL, text, todo)]


def failures_without_progress(attempts: tuple[AttemptPoint, ...]) -> list[AttemptPoint]:
    """The newest attempts that failed, back to the last one that made a new step."""
    best = 0
    streak: list[AttemptPoint] = []
    for one in attempts:
        if not one.cause:
            continue
        advanced = (one.last_step or 0) > best
        best = max(best, one.last_step or 0)
        if advanced:
            streak = []
        if one.cause not in _NO_FAULT and not advanced:
            streak.append(one)
    return streak


def failed(snapshot: Snapshot, limits: Limits) -> Answer:
    """The run ended for good, without success; a wish (cancelled, stopped) is news only."""
    if snapshot.state is RunState.UNKNOWN and snapshot.job is JobState.UNKNOWN:
        return Unknown("the scheduler does not answer")
    if snapshot.state in (RunState.CANCELLED, RunState.STOPPED):
        text = f"{snapshot.state} at step {snapshot.step}: {snapshot.why or 'no reason given'}"
        todo = f"python -m launcher resume {snapshot.run_id}"
        return [Finding(Rule.FAILED, str(snapshot.state), Severity.INFO, text, todo)]
    if snapshot.state is not RunState.FAILED:
        return []
    why = snapshot.diagnosis or snapshot.why or "no reason was recorded"
    todo = snapshot.remedy or f"python -m monitor diagnose {snapshot.run_id}"
    text = f"failed at step {snapshot.step}: {why}"
    return [Finding(Rule.FAILED, "run", Severity.CRITICAL, text, todo)]


def finished(snapshot: Snapshot, limits: Limits) -> Answer:
    """It is done."""
    if snapshot.state is not RunState.FINISHED:
        return []
    last = next((one.loss for one in reversed(snapshot.steps) if one.loss is not None), None)
    loss = f", loss {last:.4f}" if last is not None else ""
    count = len(snapshot.attempts)
    attempts = f", {count} attempts" if count > 1 else ""
    text = f"finished after {snapshot.step} steps{loss}{attempts}"
    return [Finding(Rule.FINISHED, "run", Severity.INFO, text)]


def hours(seconds: float) -> str:
    """``90 s``, ``12 min``, ``3.5 h``"""
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
