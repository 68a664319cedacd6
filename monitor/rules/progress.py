"""Rules about speed: does it advance, do all ranks, as fast as usual. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from monitor.rules.life import hours
from monitor.rules.model import Answer, Finding, Limits, Rule, Severity, Unknown
from monitor.snapshot import RankPoint, Snapshot
from monitor.status import JobState

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
