"""Builds the snapshot of a run that the rules look at, from its folder and its job's state.

None, and empty tuples, mean "not known": a rule says then that it cannot tell, never that all is
well. Times are UTC seconds.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from submitrain.attempts import Attempt
from submitrain.errors import UserError
from submitrain.events import Event, Kind, Phase, number, read_tail
from submitrain.monitor.diagnose import diagnose_run
from submitrain.run_facts import RunEvidence
from submitrain.run_folder import RunDir
from submitrain.status import JobState, RunObservation, RunState

RANK_TAIL_BYTES = 16 * 1024
"""Some minutes of heartbeats; how long a rank has been idle is in every one of them."""
DIAGNOSED_BYTES = 64 * 2**20
_ALIVE_ONLY = frozenset({Kind.HEARTBEAT, Kind.SAMPLES})
"""Events that a rank writes without advancing."""


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
    """What earlier polls measured, oldest first, kept in the monitor's state."""

    rates: tuple[tuple[float, float, int], ...] = ()
    """(time, median tokens/s since the poll before, attempt)"""
    free: tuple[tuple[float, float], ...] = ()
    """(time, free bytes)"""
    lags: tuple[tuple[int, Mapping[int, float]], ...] = ()
    """(attempt, busy seconds of a step by rank)"""
    seen_step: int = 0
    """Newest step of the poll before."""
    looked_at: float = 0.0


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
    """(step, what, action) that the training itself noticed since the poll before"""
    checkpoints: CheckpointFacts = CheckpointFacts(None)
    disk: DiskFacts | None = None
    queued_since: float | None = None
    diagnosis: str = ""
    remedy: str = ""
    samples: Samples = field(default=Samples())

    @property
    def running(self) -> bool:
        """Whether ranks should be at work."""
        return self.state in (RunState.RUNNING, RunState.STARTING)


def observe(
    observation: RunObservation,
    past: Samples,
    *,
    now: float,
    checkpoint_interval_steps: int | None,
    disk: DiskFacts | None,
) -> Snapshot:
    """The snapshot, with this poll's measurements added to those of earlier ones."""
    evidence, status = observation.evidence, observation.status
    steps = steps_of(evidence.tail)
    ranks = ranks_of(evidence)
    ended = evidence.attempts[-1].ended_at if evidence.attempts else None
    queued = [t for t in (status.submitted_at, ended) if t is not None]
    return Snapshot(
        run_id=evidence.folder.name,
        now=now,
        state=status.state,
        why=status.why,
        job=observation.job.state,
        attempt=status.attempt,
        step=status.step,
        total_steps=status.total_steps,
        steps=steps,
        ranks=ranks,
        attempts=evidence.attempts,
        anomalies=tuple(
            (event["step"], str(event.get("what", "")), str(event.get("action", "")))
            for event in evidence.tail
            if event["kind"] == Kind.ANOMALY
            and isinstance(event.get("step"), int)
            and event["step"] > past.seen_step
        ),
        checkpoints=checkpoints_of(evidence, checkpoint_interval_steps),
        disk=disk,
        queued_since=max(queued, default=None),
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
    host = next((str(e["host"]) for e in reversed(events) if e.get("host")), "")
    nodes, world_size = attempt.nodes, attempt.world_size
    if not host and nodes and world_size and world_size % len(nodes) == 0:
        # Its own word has scrolled away: ranks are spread evenly, in order.
        host = nodes[min(rank // (world_size // len(nodes)), len(nodes) - 1)]
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
    return RankPoint(rank, host or "?", phase, step, advanced, last, tuple(busy))


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


def _extended(
    past: Samples,
    steps: Sequence[StepPoint],
    ranks: Sequence[RankPoint],
    disk: DiskFacts | None,
    now: float,
    attempt: int,
) -> Samples:
    """Earlier measurements and this poll's; ``seen_step`` stays that of the poll before."""
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
    return replace(past, rates=rates[-720:], free=free[-720:], lags=lags[-16:])


Stamps = tuple[int, ...]


def stamps(folder: Path) -> Stamps:
    """Times of the files that change when a run progresses, ends or is resumed; summary's last."""
    run_dir = RunDir(folder)
    found = []
    for path in (run_dir.submissions, run_dir.attempts, run_dir.cancel_request, run_dir.summary):
        try:
            found.append(path.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


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
