"""Cuts every allocation of a run into stretches of time, each spent on one category. Pure.

Times are whole microseconds since the epoch (UTC). An allocation lasts from a job's start to its
end or requeue, by sacct and, where that does not tell, by the supervisor's records. It is cut at
the marks that the supervisor and rank 0 left in the event files, so its stretches cover it exactly,
whatever the records look like. Definitions: docs/goodput.md.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum

from submitrain.attempts import Attempt, Cause
from submitrain.events import Event, Kind, Phase, integer
from submitrain.monitor.accounting.records import RunRecords, SacctJob


class Category(StrEnum):
    """What a stretch of an allocation was spent on."""

    PRODUCTIVE = "productive"
    """Optimizer steps whose result the run kept."""
    STARTUP = "startup"
    """From the start of the job, or of an attempt, to the first step: imports, rendezvous, data,
    building the model."""
    DATA_WAIT = "data_wait"
    """Waiting for the loader in steps that were kept (of the steps that were logged)."""
    SAVE = "save"
    """Training stood still for a checkpoint; what is written in the background is not counted."""
    RESTORE = "restore"
    """Reading and verifying a checkpoint."""
    VALIDATION = "validation"
    EXPORT = "export"
    RECOMPUTED = "recomputed"
    """Steps whose result was thrown away, so that they were, or will be, computed again."""
    STALLED = "stalled"
    """From the last progress of a hung attempt until it was ended."""
    LOST = "lost"
    """From the last progress of an attempt that failed otherwise to its end: unfinished work, and
    the time to notice."""
    WAITING = "waiting"
    """No rank computes: ranks leave, the supervisor decides and pauses, the job ends."""
    SPARE = "spare"
    """Nodes held in reserve; only in rank-seconds."""
    UNEXPLAINED = "unexplained"
    """Nothing was recorded: a silent job, or an allocation without a supervisor."""


@dataclass(frozen=True)
class AttemptTime:
    """One attempt in time."""

    attempt: int
    job_id: str
    restart: int
    """The job's restart count: another one is another allocation."""
    started_us: int
    ended_us: int
    """The recorded end; of an attempt whose supervisor vanished, the last sign of life."""
    ended: bool
    """Whether it is over."""
    cause: Cause | None
    """Why it ended; None while it lasts."""
    world_size: int
    capacity: int
    """Ranks that the allocation has room for: spare nodes count."""
    job_started_us: int


@dataclass(frozen=True)
class Allocation:
    """One allocation and the attempts within it, in their order."""

    job_id: str
    started_us: int
    ended_us: int
    attempts: tuple[AttemptTime, ...] = ()
    sacct: SacctJob | None = None
    """The allocation in Slurm's accounting, where that has it."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of an allocation that was spent on one thing."""

    started_us: int
    ended_us: int
    category: Category
    busy: int
    """Ranks that it is booked to; those beyond, up to ``capacity``, were spare."""
    capacity: int
    attempt: int
    """The attempt that runs, or ran last; 0 in an allocation without one."""


def time_us(event: Event) -> int | None:
    """When an event was written; None where it does not say."""
    t = event.get("t")
    if isinstance(t, bool) or not isinstance(t, int | float) or not math.isfinite(t) or t < 0:
        return None
    return round(t * 1e6)


def _us(value: object) -> int:
    """A time or duration in seconds as microseconds; 0 for anything else."""
    return time_us({"t": value}) or 0


def allocations(records: RunRecords) -> list[Allocation]:
    """Every allocation of the run with its attempts, in the order of time."""
    now_us = _us(records.now)
    found = []
    for job in records.jobs:
        ended_us = max(job.started_us, now_us if job.ended_us is None else job.ended_us)
        found.append(Allocation(job.job_id, job.started_us, ended_us, sacct=job))
    for own in _recorded_allocations(records):
        place = _best_match(found, own)
        if place is None:
            found.append(own)
            continue
        known = found[place]
        found[place] = replace(
            known,
            started_us=min(known.started_us, own.started_us),
            ended_us=max(known.ended_us, own.ended_us),
            attempts=tuple(sorted(known.attempts + own.attempts, key=lambda one: one.attempt)),
        )
    return _without_overlaps(found)


def _recorded_allocations(records: RunRecords) -> list[Allocation]:
    """Allocations as far as the supervisor's records show them."""
    local = {
        str(line.get("job_id")): t
        for line in records.submissions
        if line.get("cluster") == "local" and (t := time_us(line)) is not None
    }
    groups: dict[tuple[str, int], list[AttemptTime]] = {}
    for one in _attempts(records):
        groups.setdefault((one.job_id, one.restart), []).append(one)
    found = []
    for (job_id, _), members in groups.items():
        started = min(one.job_started_us for one in members)
        # A local job has its machine from the moment of its submission.
        started = min(started, local.get(job_id, started))
        ended = max(started, *(one.ended_us for one in members))
        found.append(Allocation(job_id, started, ended, tuple(members)))
    return found


def _attempts(records: RunRecords) -> list[AttemptTime]:
    """All attempts in the order of their numbers."""
    last_us: dict[int, int] = {}
    for event in records.events:
        attempt, t_us = event.get("attempt"), time_us(event)
        if isinstance(attempt, int) and t_us is not None:
            last_us[attempt] = max(t_us, last_us.get(attempt, 0))
    dated = [one for one in records.attempts if time_us(one.start) is not None]
    newest = max((one.number for one in dated), default=0)
    times = []
    for one in dated:
        live = one.number == newest and not records.ended and one.ended_at is None
        until_us = _us(records.now) if live else last_us.get(one.number, 0)
        times.append(_attempt(one, until_us, live=live))
    return times


def _attempt(one: Attempt, until_us: int, *, live: bool) -> AttemptTime:
    started_us = _us(one.started_at)
    cause = one.cause or (None if live else Cause.LOST)
    if one.ended_at is not None and cause is not Cause.LOST:
        until_us = _us(one.ended_at) or started_us
    world_size, used = max(1, one.world_size), max(1, len(one.nodes))
    held = max(used, integer(one.start.get("allocated_nodes")) or 0)
    return AttemptTime(
        attempt=one.number,
        job_id=one.job_id,
        restart=one.restarts,
        started_us=started_us,
        ended_us=max(started_us, until_us),
        ended=not live,
        cause=cause,
        world_size=world_size,
        capacity=max(world_size, world_size * held // used),
        job_started_us=min(started_us, _us(one.start.get("job_started_at")) or started_us),
    )


def _best_match(found: Sequence[Allocation], own: Allocation) -> int | None:
    """The scheduler's allocation that shares most time with this one; clocks may differ by 1 s."""
    best, place = -1_000_000, None
    for index, known in enumerate(found):
        shared = min(known.ended_us, own.ended_us) - max(known.started_us, own.started_us)
        if known.job_id == own.job_id and shared > best:
            best, place = shared, index
    return place


def _without_overlaps(found: Sequence[Allocation]) -> list[Allocation]:
    """A job holds its nodes once, and its attempts run one after the other: the later one wins."""
    ordered = sorted(found, key=lambda one: (one.started_us, one.ended_us))
    result = []
    for index, one in enumerate(ordered):
        later = [other for other in ordered[index + 1 :] if other.job_id == one.job_id]
        end_us = min([one.ended_us, *(other.started_us for other in later)])
        end_us = max(one.started_us, end_us)
        attempts = []
        for place, attempt in enumerate(one.attempts):
            over = attempt.ended and attempt.cause is not Cause.LOST
            until_us = attempt.ended_us if over else end_us
            until_us = min([until_us, *(next_.started_us for next_ in one.attempts[place + 1 :])])
            attempts.append(replace(attempt, ended_us=max(attempt.started_us, until_us)))
        result.append(replace(one, ended_us=end_us, attempts=tuple(attempts)))
    return result


def queued_us(records: RunRecords, held: Sequence[Allocation]) -> int:
    """Time that the run's jobs spent in the queue, before each of their allocations."""
    total = 0
    for line in records.submissions:
        at = time_us(line)
        if at is None:
            continue
        for one in held:
            if one.job_id == str(line.get("job_id")):
                total += max(0, one.started_us - at)
                at = max(at, one.ended_us)
        if records.pending and line is records.submissions[-1]:
            total += max(0, _us(records.now) - at)
    return total


_PHASES: dict[str, Category] = {
    Phase.IMPORT: Category.STARTUP,
    Phase.RENDEZVOUS: Category.STARTUP,
    Phase.DATA: Category.STARTUP,
    Phase.BUILD: Category.STARTUP,
    Phase.LOAD: Category.STARTUP,
    Phase.FIRST_STEP: Category.PRODUCTIVE,
    Phase.STEP: Category.PRODUCTIVE,
    Phase.VALIDATE: Category.VALIDATION,
    Phase.SAVE: Category.SAVE,
    Phase.EXPORT: Category.EXPORT,
    Phase.EXIT: Category.WAITING,
}
_PROGRESS = frozenset(
    {Kind.PHASE, Kind.STEP, Kind.VALIDATION, Kind.RESUME, Kind.SETUP, Kind.EXPORT, Kind.START}
)
"""Events of rank 0's main thread: each one ends a piece of work, or begins one."""


def book(records: RunRecords) -> list[tuple[Allocation, list[Stretch]]]:
    """Every allocation of a run, and what its time was spent on."""
    held = allocations(records)
    attempts = [one for allocation in held for one in allocation.attempts]
    capacity = max((one.capacity for one in attempts), default=1)
    by_attempt: dict[int, list[Event]] = {}
    for event in records.events:
        if isinstance(event.get("attempt"), int):
            by_attempt.setdefault(event["attempt"], []).append(event)
    newest = next((one for one in attempts if one.attempt == max(by_attempt, default=0)), None)
    over = records.ended or (newest is not None and newest.ended)
    resumed = _resumed_steps(by_attempt, over=over)
    booked = []
    for one in held:
        booking = _Booking(one, capacity)
        for attempt in one.attempts:
            _book_attempt(booking, attempt, by_attempt.get(attempt.attempt, []), resumed)
        booked.append((one, booking.close()))
    return booked


class _Booking:
    """Books the time of one allocation from each mark to the next; it never runs backwards."""

    def __init__(self, allocation: Allocation, capacity: int) -> None:
        """Before the first mark; ``capacity`` is used where no attempt tells it."""
        first = allocation.attempts[0] if allocation.attempts else None
        self.at_us, self.end_us = allocation.started_us, allocation.ended_us
        self.limit_us = 0
        """No mark of the attempt that runs is later: ranks of an old one may still write."""
        self.category = Category.STARTUP if first is not None else Category.UNEXPLAINED
        self.capacity = first.capacity if first is not None else capacity
        self.number = first.attempt if first is not None else 0
        self.world_size = 0
        """Ranks of the attempt that runs; 0 between attempts, when the whole allocation waits."""
        self.stretches: list[Stretch] = []

    def mark(self, t_us: int, category: Category) -> None:
        """From here on the time belongs to ``category``."""
        until = max(self.at_us, min(t_us, self.end_us, self.limit_us))
        if until > self.at_us:
            busy = self.world_size or self.capacity
            self.stretches.append(
                Stretch(self.at_us, until, self.category, busy, self.capacity, self.number)
            )
        self.at_us, self.category = until, category

    def begin(self, attempt: AttemptTime) -> None:
        """An attempt begins."""
        self.limit_us = self.end_us
        self.mark(attempt.started_us, Category.STARTUP)
        self.limit_us, self.number = attempt.ended_us, attempt.attempt
        self.world_size, self.capacity = attempt.world_size, attempt.capacity

    def wait(self, t_us: int) -> None:
        """The attempt is over, and the whole allocation waits."""
        self.limit_us = self.end_us
        self.mark(t_us, Category.WAITING)
        self.world_size = 0

    def close(self) -> list[Stretch]:
        """Book the rest."""
        self.limit_us = self.end_us
        self.mark(self.end_us, self.category)
        return self.stretches


def _book_attempt(
    booking: _Booking,
    attempt: AttemptTime,
    events: Sequence[Event],
    resumed: Sequence[tuple[int, int, int]],
) -> None:
    """Book one attempt by what rank 0 recorded of it."""
    booking.begin(attempt)
    last_us, last_step, left = attempt.started_us, None, False
    restored = any(event["kind"] == Kind.RESUME for event in events)
    for index, event in enumerate(events):
        kind, t_us, step = event["kind"], time_us(event), event.get("step")
        if t_us is None or left:
            continue
        if kind in _PROGRESS:
            last_us = max(last_us, min(t_us, attempt.ended_us))
        if kind in (Kind.STEP, Kind.PHASE) and isinstance(step, int):
            if booking.category is Category.PRODUCTIVE:
                later = [at for *place, at in resumed if tuple(place) > (attempt.attempt, index)]
                _book_step(booking, event, t_us, _discarded_fraction(later, last_step, step))
            last_step = step
        if kind == Kind.PHASE:
            phase = str(event.get("phase"))
            category = _PHASES.get(phase, Category.UNEXPLAINED)
            booking.mark(t_us, Category.RESTORE if phase == Phase.LOAD and restored else category)
        elif kind in (Kind.STOPPED, Kind.FINISH):
            left = True
            booking.mark(t_us, Category.WAITING)
    if not left and attempt.ended:
        # The open piece of work was not booked yet: only its name changes.
        booking.mark(last_us, Category.STALLED if attempt.cause is Cause.HUNG else Category.LOST)
    elif not left:
        # It lives: what it does counts until its last sign of life, silence does not.
        signs = [t_us for event in events if (t_us := time_us(event)) is not None]
        booking.mark(max([last_us, *signs]), Category.UNEXPLAINED)
    if attempt.ended and attempt.cause is not Cause.LOST:
        booking.wait(attempt.ended_us)


def _book_step(booking: _Booking, event: Event, end_us: int, discarded: float) -> None:
    """Book the time up to the end of a step; ``discarded``: share of it whose result was dropped.

    The booking stands at the end of the step before, or at the phase's begin: of several steps
    between two logged ones each is taken to be equally long.
    """
    begin_us = min(booking.at_us, end_us)
    if discarded > 0:
        kept_us = int((end_us - begin_us) * (1.0 - discarded))
        booking.mark(begin_us + kept_us, Category.RECOMPUTED)
    else:
        waits_from = max(begin_us, end_us - _us(event.get("step_s")))
        booking.mark(waits_from, Category.DATA_WAIT)
        waits_until = min(end_us, waits_from + _us(event.get("data_wait_s")))
        booking.mark(waits_until, Category.PRODUCTIVE)
    booking.mark(end_us, Category.PRODUCTIVE)


def _resumed_steps(by_attempt: dict[int, list[Event]], *, over: bool) -> list[tuple[int, int, int]]:
    """From which step training continued: attempt, index of the event in it, step."""
    resumed: list[tuple[int, int, int]] = []
    saved = 0
    for attempt in sorted(by_attempt):
        for index, event in enumerate(by_attempt[attempt]):
            step = event.get("step")
            if not isinstance(step, int):
                continue
            begins = event["kind"] == Kind.PHASE and event.get("phase") == Phase.FIRST_STEP
            if begins or event["kind"] == Kind.RESUME:
                resumed.append((attempt, index, step))
            elif event["kind"] == Kind.CHECKPOINT:
                saved = max(saved, step)
    newest = max(by_attempt, default=0)
    if over and not any(event["kind"] == Kind.FINISH for event in by_attempt.get(newest, ())):
        # Whoever resumes the run resumes it from the newest checkpoint.
        resumed.append((newest + 1, 0, saved))
    return resumed


def _discarded_fraction(later: Sequence[int], before: int | None, step: int) -> float:
    """Share of the steps after ``before`` up to ``step`` that a ``later`` resume drops."""
    first = before if before is not None and before < step else step - 1
    return max(0, step - max(first, min(later, default=step))) / (step - first)
