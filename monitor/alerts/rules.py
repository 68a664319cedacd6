"""The rules of alerts: what is wrong with a run, how bad, and what to do. Pure.

Every rule answers in three values: findings (it fires), nothing (it does not), or "cannot tell"; an
alert neither begins nor ends on what cannot be told. ``RULES`` is the table of them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

from submitrain.attempts import Action, Attempt, Cause
from submitrain.config.alerts import MonitorConfig as Limits
from submitrain.monitor.alerts.loss_spike import MIN_LOSSES, find_spike
from submitrain.monitor.watch.observe import RankPoint, Snapshot
from submitrain.slurm.jobs import explain_reason, reason_text
from submitrain.status import JobState, RunState
from submitrain.text import bytes_text, duration

DAY_S = 86400.0
P99_FACTOR = 5.0
MIN_STEPS = 20
"""Steps from which on "usual" means something."""
SMOOTHING = 0.3
"""Weight of the newest value in the exponential mean."""
MIN_TREND_S = 1800.0
"""A trend of free space needs at least so much time, and ``MIN_TREND`` points."""
MIN_TREND = 5
_PHASE_LIMIT = {"validate": "hang_validate_s", "save": "hang_save_s", "export": "hang_save_s"}
_NO_FAULT = frozenset(
    {Cause.FINISHED, Cause.TIME_LIMIT, Cause.PREEMPTED, Cause.REQUEUED, Cause.CANCELLED}
    | {Cause.TERMINATED, Cause.FENCED}
)
"""Causes of an attempt's end that say nothing against the program."""
_SENT_BACK = frozenset({Action.REQUEUE, Action.LEAVE})


class Severity(StrEnum):
    """Who should hear of it: someone now, someone today, whoever is interested."""

    CRITICAL = "critical"
    WARNING = "warning"
    INFO = "info"


class Rule(StrEnum):
    """What is examined."""

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


@dataclass(frozen=True)
class Unknown:
    """The rule cannot tell."""

    why: str


RuleResult = list[Finding] | Unknown


@dataclass(frozen=True)
class RuleResults:
    """What holds, and the rules that could not tell, with the reason."""

    findings: tuple[Finding, ...] = ()
    unknown: dict[Rule, str] = field(default_factory=dict)

    def redacted(self, redact: Callable[[str], str]) -> RuleResults:
        """The same with what findings say passed through ``redact``."""
        findings = tuple(
            replace(one, text=redact(one.text), next_step=redact(one.next_step))
            for one in self.findings
        )
        return RuleResults(findings, self.unknown)


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


def hang(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """No rank has advanced for longer than its phase may take."""
    if snapshot.state.ended or snapshot.job in (JobState.PENDING, JobState.ENDED):
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
        f"no progress for {duration(idle_s)} in phase {slowest.phase} at step {slowest.step} "
        f"(allowed: {duration(budget_s)}); {_suspects(snapshot.ranks)}"
    )
    todo = (
        f"python -m launcher logs {snapshot.run_id} --rank {slowest.rank}; restart it if it stays"
    )
    return [Finding(Rule.HANG, "run", Severity.CRITICAL, text, todo)]


def _not_started(snapshot: Snapshot, limits: Limits) -> RuleResult:
    starts = (one.started_at for one in snapshot.attempts if one.number == snapshot.attempt)
    began = next(starts, None)
    if began is None or not snapshot.running:
        return Unknown("no attempt has begun")
    waited_s = snapshot.now - began
    if waited_s <= limits.hang_start_s:
        return []
    text = f"attempt {snapshot.attempt} began {duration(waited_s)} ago and no rank has spoken"
    todo = "look at the job's log in the run folder's submitit/ and at the nodes (sinfo -R)"
    return [Finding(Rule.HANG, "run", Severity.CRITICAL, text, todo)]


def _budget_s(phase: str, snapshot: Snapshot, limits: Limits) -> float:
    if phase in _PHASE_LIMIT:
        return float(getattr(limits, _PHASE_LIMIT[phase]))
    if phase != "step":
        return float(limits.hang_start_s)
    took = [one.step_s for one in snapshot.steps if one.step_s is not None]
    p99 = sorted(took)[math.ceil(0.99 * len(took)) - 1] if took else 0.0
    return max(float(limits.hang_step_s), P99_FACTOR * p99)


def _suspects(ranks: Sequence[RankPoint]) -> str:
    newest = max(one.last_event_at for one in ranks)
    silent = [one for one in ranks if newest - one.last_event_at > 60]
    behind = [one for one in ranks if one.step < max(other.step for other in ranks)]
    for word, found in (("silent", silent), ("behind", behind)):
        if found:
            names = ", ".join(f"rank {one.rank} ({one.host})" for one in found[:4])
            return f"{word}: {names}" + (f" and {len(found) - 4} more" if len(found) > 4 else "")
    return f"all {len(ranks)} ranks are equally far"


def straggler(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """Ranks that compute longer than the best one, in many polls in a row."""
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
            f"({max(ratios):.2f} of its speed in {len(recent)} polls)"
        )
        todo = f"look for other work and for throttling on {host}; exclude it if it stays"
        found.append(Finding(Rule.STRAGGLER, f"rank {rank}", Severity.WARNING, text, todo))
    return found


def throughput(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """Smoothed tokens/s below the usual for the whole of the last minutes, in one attempt."""
    if not snapshot.running:
        return []
    points = [
        (t, rate) for t, rate, attempt in snapshot.samples.rates if attempt == snapshot.attempt
    ]
    since = snapshot.now - limits.throughput_s
    before = [rate for t, rate in points if t < since]
    smoothed: list[float] = []
    for _, rate in points:
        last = smoothed[-1] if smoothed else rate
        smoothed.append(SMOOTHING * rate + (1 - SMOOTHING) * last)
    recent = smoothed[len(before) :]
    if len(before) < MIN_STEPS or len(recent) < 3:
        return Unknown("too few measurements of tokens/s in this attempt")
    usual = statistics.median(before)
    if max(recent) >= limits.throughput_ratio * usual:
        return []
    text = (
        f"{recent[-1]:,.0f} tokens/s for {duration(limits.throughput_s)}, usual are {usual:,.0f} "
        f"({recent[-1] / usual:.0%})"
    )
    todo = "look at data_wait_s (storage), stragglers and other work on the nodes"
    return [Finding(Rule.THROUGHPUT, "run", Severity.WARNING, text, todo)]


def loss(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """NaN or infinity at once; a spike after some steps far above the usual."""
    new = [one for one in snapshot.steps if one.step > snapshot.samples.seen_step]
    bad = next((one for one in new if one.loss is not None and not math.isfinite(one.loss)), None)
    skipped = next((one for one in snapshot.anomalies if "finite" in one[1]), None)
    if bad is not None or skipped is not None:
        step = bad.step if bad is not None else (skipped or (0,))[0]
        done = f"; the training itself: {skipped[2]}" if skipped else ""
        text = f"loss or gradients are not finite at step {step}{done}"
        todo = "lower the learning rate, clip gradients, or look at the data of that step"
        return [Finding(Rule.LOSS, "not finite", Severity.CRITICAL, text, todo)]
    return _spike(snapshot, limits)


def _spike(snapshot: Snapshot, limits: Limits) -> RuleResult:
    told = next((one for one in snapshot.anomalies if one[1] == "loss_spike"), None)
    todo = "look at the data of that step and at the learning rate"
    if told is not None:
        text = f"loss spike at step {told[0]}; the training itself: {told[2]}"
        return [Finding(Rule.LOSS, "spike", Severity.WARNING, text, todo)]
    points = [
        (one.step, one.loss)
        for one in snapshot.steps
        if one.loss is not None and math.isfinite(one.loss)
    ]
    if snapshot.state.ended:
        return []
    if len(points) < MIN_LOSSES + limits.loss_spike_steps:
        return Unknown("too few losses to know the usual one")
    num_steps = limits.loss_spike_steps
    after = snapshot.samples.seen_step - num_steps
    found = find_spike(points, z_limit=limits.loss_spike_z, num_steps=num_steps, after=after)
    if found is None:
        return []
    step, value, usual, z = found
    text = (
        f"loss {value:.4g} at step {step}, usual is {usual:.4g} (z {z:.1f} for {num_steps} steps)"
    )
    return [Finding(Rule.LOSS, "spike", Severity.WARNING, text, todo)]


def checkpoint(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """The last save failed, or the last committed one is too far behind."""
    facts = snapshot.checkpoints
    if facts.interval_steps is None or snapshot.state.ended:
        return []
    if facts.failed is not None:
        step, reason = facts.failed
        text = f"the checkpoint of step {step} could not be saved: {reason}"
        todo = "make room or mend the file system; training continues unprotected until then"
        return [Finding(Rule.CHECKPOINT, "failed", Severity.CRITICAL, text, todo)]
    behind = snapshot.step - facts.committed_step
    if behind <= limits.checkpoint_intervals * facts.interval_steps:
        return []
    text = (
        f"step {snapshot.step}, last committed checkpoint at step {facts.committed_step}: {behind} "
        f"steps, the interval is {facts.interval_steps}"
    )
    todo = "look for checkpoint_failed events and at the file system's speed"
    return [Finding(Rule.CHECKPOINT, "overdue", Severity.WARNING, text, todo)]


def disk(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """Nothing can be written, no room for the next checkpoints, or soon none."""
    facts = snapshot.disk
    if snapshot.state.ended:
        return []
    if facts is None:
        return Unknown("not examined at this poll")
    if not facts.answered:
        return Unknown(facts.problem or f"{facts.path} does not answer")
    todo = f"free space at {facts.path} or raise the quota; keep_last_n_checkpoints keeps fewer"
    if facts.problem:
        text = f"cannot write to {facts.path}: {facts.problem}"
        return [Finding(Rule.DISK, "write", Severity.CRITICAL, text, todo)]
    if facts.free_bytes is None:
        return Unknown(f"free space at {facts.path} is not known")
    size = snapshot.checkpoints.committed_bytes
    if size and facts.free_bytes < limits.disk_checkpoints * size:
        text = (
            f"{bytes_text(facts.free_bytes)} free at {facts.path}, a checkpoint takes "
            f"{bytes_text(size)}: less than {limits.disk_checkpoints:g}"
        )
        return [Finding(Rule.DISK, "space", Severity.CRITICAL, text, todo)]
    full_s = full_in_s(snapshot.samples.free)
    if full_s is None or full_s > limits.disk_full_h * 3600:
        return []
    left = bytes_text(facts.free_bytes)
    text = f"{facts.path} is full in {duration(full_s)} at the present pace ({left} free)"
    return [Finding(Rule.DISK, "trend", Severity.WARNING, text, todo)]


def full_in_s(points: Sequence[tuple[float, float]]) -> float | None:
    """Seconds until nothing is free, by the median slope (Theil-Sen); None = no such trend."""
    thinned = points[:: max(1, len(points) // 60)]
    if len(thinned) < MIN_TREND or thinned[-1][0] - thinned[0][0] < MIN_TREND_S:
        return None
    slopes = [
        (later[1] - earlier[1]) / (later[0] - earlier[0])
        for index, earlier in enumerate(thinned)
        for later in thinned[index + 1 :]
        if later[0] > earlier[0]
    ]
    slope = statistics.median(slopes)
    return points[-1][1] / -slope if slope < 0 else None


def crash_loop(snapshot: Snapshot, limits: Limits) -> RuleResult:
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


def failed(snapshot: Snapshot, limits: Limits) -> RuleResult:
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


def queue(snapshot: Snapshot, limits: Limits) -> RuleResult:
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
    _, todo = explain_reason(snapshot.why)
    reason = reason_text(snapshot.why) or "no reason given"
    text = f"in the queue for {duration(waited_s)}: {reason}"
    return [Finding(Rule.QUEUE, "run", Severity.WARNING, text, todo)]


def requeued(snapshot: Snapshot, limits: Limits) -> RuleResult:
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


def finished(snapshot: Snapshot, limits: Limits) -> RuleResult:
    """It is done."""
    if snapshot.state is not RunState.FINISHED:
        return []
    last = next((one.loss for one in reversed(snapshot.steps) if one.loss is not None), None)
    loss = f", loss {last:.4f}" if last is not None else ""
    count = len(snapshot.attempts)
    attempts = f", {count} attempts" if count > 1 else ""
    text = f"finished after {snapshot.step} steps{loss}{attempts}"
    return [Finding(Rule.FINISHED, "run", Severity.INFO, text)]


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


def judge(snapshot: Snapshot, limits: Limits) -> RuleResults:
    """What every rule says of a run."""
    found: list[Finding] = []
    unknown: dict[Rule, str] = {}
    for rule, check in RULES.items():
        answer = check(snapshot, limits)
        if isinstance(answer, Unknown):
            unknown[rule] = answer.why
        else:
            found.extend(answer)
    return RuleResults(tuple(found), unknown)
