"""Builds the snapshot of a run from its folder and what the scheduler said. Reads files only."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from submitrain.attempts import Attempt
from submitrain.errors import UserError
from submitrain.events import Event, Kind, Phase, number
from submitrain.monitor.diagnose import diagnose_run
from submitrain.monitor.watch.snapshot import (
    CheckpointFacts,
    DiskFacts,
    RankPoint,
    Samples,
    Snapshot,
    StepPoint,
)
from submitrain.run_facts import RunEvidence, read_tail
from submitrain.run_folder import RunDir
from submitrain.status import RunState, Sight

RANK_TAIL_BYTES = 16 * 1024
"""Some minutes of heartbeats; how long a rank has been idle is in every one of them."""
DIAGNOSED_BYTES = 64 * 2**20
_ALIVE_ONLY = frozenset({Kind.HEARTBEAT, Kind.SAMPLES})
"""Events that a rank writes without advancing."""


def observe(
    sight: Sight,
    past: Samples,
    *,
    now: float,
    checkpoint_interval_steps: int | None,
    disk: DiskFacts | None,
) -> Snapshot:
    """The snapshot, with this look's measurements added to those of earlier ones."""
    evidence, status = sight.evidence, sight.status
    steps = steps_of(evidence.tail)
    ranks = ranks_of(evidence)
    return Snapshot(
        run_id=evidence.folder.name,
        now=now,
        state=status.state,
        why=status.why,
        job=sight.job.state,
        attempt=status.attempt,
        step=status.step,
        total_steps=status.total_steps,
        steps=steps,
        ranks=ranks,
        attempts=evidence.attempts,
        anomalies=_anomalies(evidence.tail, past.seen_step),
        checkpoints=checkpoints_of(evidence, checkpoint_interval_steps),
        disk=disk,
        queued_since=_queued_since(evidence),
        submitted_at=status.submitted_at,
        samples=_extended(past, steps, ranks, disk, now, status.attempt),
    )


def diagnosed(snapshot: Snapshot, folder: Path) -> Snapshot:
    """The snapshot of a failed run with the cause that its logs and records show."""
    if snapshot.state is not RunState.FAILED:
        return snapshot
    try:
        found = diagnose_run(folder, log_bytes=DIAGNOSED_BYTES)
    except (UserError, OSError):
        return snapshot
    if found.benign:
        return snapshot
    return replace(snapshot, diagnosis=found.summary, remedy=found.remedy.text)


def steps_of(tail: Sequence[Event]) -> tuple[StepPoint, ...]:
    """Steps of rank 0 in order; of a step computed twice, the later one."""
    found: dict[int, StepPoint] = {}
    for event in tail:
        if event["kind"] == Kind.STEP and isinstance(event.get("step"), int):
            found.pop(event["step"], None)
            found[event["step"]] = StepPoint(
                step=event["step"],
                t=number(event.get("t")) or 0.0,
                attempt=int(event.get("attempt", 0)),
                loss=number(event.get("loss")),
                step_s=number(event.get("step_s")),
                tokens_per_s=number(event.get("tokens_per_s")),
            )
    return tuple(found.values())


def ranks_of(evidence: RunEvidence) -> tuple[RankPoint, ...]:
    """Every rank that has spoken in the newest attempt."""
    found = []
    attempt = evidence.attempts[-1] if evidence.attempts else Attempt(0)
    for path in sorted(RunDir(evidence.folder).events_dir.glob("rank*.jsonl")):
        tail = read_tail(path, limit_bytes=RANK_TAIL_BYTES)
        mine = [event for event in tail if event.get("attempt") == evidence.newest_attempt]
        if mine:
            found.append(_rank(mine, attempt))
    return tuple(found)


def _rank(events: Sequence[Event], attempt: Attempt) -> RankPoint:
    rank = int(events[-1].get("rank", 0))
    host = next((str(e["host"]) for e in reversed(events) if e.get("host")), _host(rank, attempt))
    phase, step, advanced = str(Phase.IMPORT), 0, number(events[0].get("t")) or 0.0
    busy = []
    for event in events:
        t = number(event.get("t")) or advanced
        before = (phase, step)
        phase, step = str(event.get("phase", phase)), int(event.get("step") or step)
        if event["kind"] not in _ALIVE_ONLY or (phase, step) != before:
            advanced = max(advanced, t)
        idle_s = number(event.get("idle_s"))
        if idle_s is not None:
            advanced = max(advanced, t - idle_s)
        busy_s = number(event.get("busy_s"))
        if busy_s is not None and phase == Phase.STEP:
            busy.append((step, busy_s))
    last = number(events[-1].get("t")) or advanced
    return RankPoint(rank, host, phase, step, advanced, last, tuple(busy))


def _host(rank: int, attempt: Attempt) -> str:
    """The node of a rank whose own word has scrolled away: ranks are spread evenly, in order."""
    nodes, world_size = attempt.nodes, attempt.world_size
    if not nodes or not world_size or world_size % len(nodes):
        return "?"
    return nodes[min(rank // (world_size // len(nodes)), len(nodes) - 1)]


def checkpoints_of(evidence: RunEvidence, interval_steps: int | None) -> CheckpointFacts:
    """What is committed, how large the last one is, and whether the newest save failed."""
    committed = max(evidence.checkpoints, default=0)
    size: int | None = None
    failed: tuple[int, str] | None = None
    for event in evidence.tail:
        step = event.get("step")
        if not isinstance(step, int):
            continue
        if event["kind"] in (Kind.CHECKPOINT, Kind.RESUME):
            committed, failed = max(committed, step), None
            size = int(number(event.get("bytes")) or 0) or size
        elif event["kind"] == Kind.CHECKPOINT_FAILED:
            failed = step, str(event.get("reason", "no reason given"))
    return CheckpointFacts(interval_steps, committed, size, failed)


def _anomalies(tail: Sequence[Event], seen_step: int) -> tuple[tuple[int, str, str], ...]:
    return tuple(
        (event["step"], str(event.get("what", "")), str(event.get("action", "")))
        for event in tail
        if event["kind"] == Kind.ANOMALY
        and isinstance(event.get("step"), int)
        and event["step"] > seen_step
    )


def _queued_since(evidence: RunEvidence) -> float | None:
    submitted = number((evidence.submission or {}).get("t"))
    ended = evidence.attempts[-1].ended_at if evidence.attempts else None
    return max((t for t in (submitted, ended) if t is not None), default=None)


def _extended(
    past: Samples,
    steps: Sequence[StepPoint],
    ranks: Sequence[RankPoint],
    disk: DiskFacts | None,
    now: float,
    attempt: int,
) -> Samples:
    """Earlier measurements and this look's; ``seen_step`` stays that of the look before."""
    new = [
        one.tokens_per_s
        for one in steps
        if one.t > past.looked_at and one.attempt == attempt and one.tokens_per_s is not None
    ]
    rates = (*past.rates, (now, statistics.median(new), attempt)) if new else past.rates
    free = past.free
    if disk is not None and disk.free_bytes is not None:
        free = (*free, (now, float(disk.free_bytes)))
    lags = past.lags
    lag = lag_of(ranks)
    if lag and (not lags or lags[-1] != (attempt, lag)):
        lags = (*lags, (attempt, lag))
    limit = Samples.LIMIT
    return replace(past, rates=rates[-limit:], free=free[-limit:], lags=lags[-16:])


def lag_of(ranks: Sequence[RankPoint]) -> dict[int, float]:
    """Busy seconds of a step by rank, over the last heartbeats; empty where not all have them."""
    found = {}
    for one in ranks:
        recent = one.busy[-6:]
        if len(recent) < 2 or recent[-1][0] <= recent[0][0] or recent[-1][1] < recent[0][1]:
            return {}
        (step_a, busy_a), (step_b, busy_b) = recent[0], recent[-1]
        found[one.rank] = round((busy_b - busy_a) / (step_b - step_a), 6)
    return found if len(found) > 1 else {}
