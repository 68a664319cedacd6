"""Rules about speed: does it advance, do all ranks, as fast as usual. Pure.

Rules about a run's life: queue, requeues, crash loops, its end. Pure.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from submitrain.attempts import Action, Attempt, Cause
from submitrain.monitor.watch.snapshot import (
    Answer,
    Finding,
    Limits,
    RankPoint,
    Rule,
    Severity,
    Snapshot,
    Unknown,
)
from submitrain.slurm.parse import explained, in_words
from submitrain.status import JobState, RunState

DAY_S = 86400.0
_NO_FAULT = frozenset(
    {Cause.FINISHED, Cause.TIME_LIMIT, Cause.PREEMPTED, Cause.REQUEUED, Cause.CANCELLED}
    | {Cause.TERMINATED, Cause.FENCED}
)
"""Causes of an attempt's end that say nothing against the program."""
_SENT_BACK = frozenset({Action.REQUEUE, Action.LEAVE})


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
        and one.cause is not Cause.TIME_LIMIT
        and snapshot.now - (one.ended_at or snapshot.now) <= DAY_S
    ]
    if len(recent) <= limits.requeues_per_day or snapshot.state.ended:
        return []
    causes = ", ".join(sorted({str(one.cause) for one in recent}))
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


def failures_without_progress(attempts: tuple[Attempt, ...]) -> list[Attempt]:
    """The newest attempts that failed, back to the last one that made a new step."""
    best = 0
    streak: list[Attempt] = []
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


P99_FACTOR = 5.0
MIN_STEPS = 20
"""Steps from which on "usual" means something."""
SMOOTHING = 0.3
"""Weight of the newest value in the exponential mean."""
_PHASE_LIMIT = {"validate": "hang_validate_s", "save": "hang_save_s", "export": "hang_save_s"}


def hang(snapshot: Snapshot, limits: Limits) -> Answer:
    """No rank has advanced for longer than its phase may take."""
    if snapshot.state.ended or snapshot.job is JobState.PENDING:
        return []
    if snapshot.job is JobState.ENDED:
        return []
    if not snapshot.ranks:
        return _not_started(snapshot, limits)
    advanced_at = max(one.progress_at for one in snapshot.ranks)
    alive_at = max(one.last_event_at for one in snapshot.ranks)
    slowest = min(snapshot.ranks, key=lambda one: (one.step, one.progress_at))
    budget_s = _budget_s(slowest.phase, snapshot, limits)
    idle_s = snapshot.now - advanced_at
    if idle_s <= budget_s:
        return []
    if snapshot.job is JobState.UNKNOWN and snapshot.now - alive_at > budget_s:
        return Unknown("the scheduler does not answer, and the ranks are silent")
    text = (
        f"no progress for {hours(idle_s)} in phase {slowest.phase} at step {slowest.step} "
        f"(allowed: {hours(budget_s)}); {_suspects(snapshot.ranks)}"
    )
    todo = (
        f"python -m launcher logs {snapshot.run_id} --rank {slowest.rank}; restart it if it stays"
    )
    return [Finding(Rule.HANG, "run", Severity.CRITICAL, text, todo)]


def _not_started(snapshot: Snapshot, limits: Limits) -> Answer:
    began = snapshot.attempt_started_at
    if began is None or not snapshot.running:
        return Unknown("no attempt has begun")
    waited_s = snapshot.now - began
    if waited_s <= limits.hang_start_s:
        return []
    text = f"attempt {snapshot.attempt} began {hours(waited_s)} ago and no rank has spoken"
    todo = "look at the job's log in the run folder's submitit/ and at the nodes (sinfo -R)"
    return [Finding(Rule.HANG, "run", Severity.CRITICAL, text, todo)]


def _budget_s(phase: str, snapshot: Snapshot, limits: Limits) -> float:
    if phase in _PHASE_LIMIT:
        return float(getattr(limits, _PHASE_LIMIT[phase]))
    if phase != "step":
        return float(limits.hang_start_s)
    took = [one.step_s for one in snapshot.steps if one.step_s is not None]
    return max(float(limits.hang_step_s), P99_FACTOR * quantile(took, 0.99))


def _suspects(ranks: Sequence[RankPoint]) -> str:
    newest = max(one.last_event_at for one in ranks)
    silent = [one for one in ranks if newest - one.last_event_at > 60]
    behind = [one for one in ranks if one.step < max(other.step for other in ranks)]
    for word, found in (("silent", silent), ("behind", behind)):
        if found:
            names = ", ".join(f"rank {one.rank} ({one.host})" for one in found[:4])
            return f"{word}: {names}" + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return f"all {len(ranks)} ranks are equally far"


def straggler(snapshot: Snapshot, limits: Limits) -> Answer:
    """Ranks that compute longer than the best one, in many looks in a row."""
    windows = [ranks for attempt, ranks in snapshot.samples.lags if attempt == snapshot.attempt]
    recent = windows[-limits.straggler_windows :]
    if not snapshot.running:
        return []
    if len(recent) < limits.straggler_windows:
        return Unknown("too few measurements of the ranks' compute time (CPU ranks only)")
    found = []
    for rank in sorted(set.intersection(*(set(ranks) for ranks in recent))):
        ratios = [min(ranks.values()) / max(ranks[rank], 1e-9) for ranks in recent]
        if max(ratios) >= limits.straggler_ratio:
            continue
        host = next((one.host for one in snapshot.ranks if one.rank == rank), "")
        times = statistics.median(ranks[rank] for ranks in recent)
        best = statistics.median(min(ranks.values()) for ranks in recent)
        text = (
            f"rank {rank} ({host}) computes {times:.3g} s a step, the best rank {best:.3g} s "
            f"({max(ratios):.2f} of its speed in {len(recent)} looks)"
        )
        todo = f"look for other work and for throttling on {host}; exclude it if it stays"
        found.append(Finding(Rule.STRAGGLER, f"rank {rank}", Severity.WARNING, text, todo))
    return found


def throughput(snapshot: Snapshot, limits: Limits) -> Answer:
    """Smoothed tokens/s below the usual for the whole of the last minutes, in one attempt."""
    if not snapshot.running:
        return []
    points = [
        (t, rate) for t, rate, attempt in snapshot.samples.rates if attempt == snapshot.attempt
    ]
    since = snapshot.now - limits.throughput_s
    before = [rate for t, rate in points if t < since]
    recent = _smoothed(points)[len(before) :]
    if len(before) < MIN_STEPS or len(recent) < 3:
        return Unknown("too few measurements of tokens/s in this attempt")
    usual = statistics.median(before)
    if max(recent) >= limits.throughput_ratio * usual:
        return []
    text = (
        f"{recent[-1]:,.0f} tokens/s for {hours(limits.throughput_s)}, usual are {usual:,.0f} "
        f"({recent[-1] / usual:.0%})"
    )
    todo = "look at data_wait_s (storage), stragglers and other work on the nodes"
    return [Finding(Rule.THROUGHPUT, "run", Severity.WARNING, text, todo)]


def _smoothed(points: Sequence[tuple[float, float]]) -> list[float]:
    """Exponential mean at every point."""
    values: list[float] = []
    for _, rate in points:
        values.append(rate if not values else SMOOTHING * rate + (1 - SMOOTHING) * values[-1])
    return values


def quantile(values: Sequence[float], share: float) -> float:
    """Value that ``share`` of the others do not exceed (nearest rank), 0 of none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else 0.0
