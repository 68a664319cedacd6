"""When a run held which resources: its attempts in time, grouped by allocation. Pure.

Times are whole microseconds since the epoch (UTC). An allocation is one stretch of one job: from
its start to its end or requeue. Where the scheduler does not tell, the supervisor's records do.

Books the time of one allocation to categories; what was booked sums up to it exactly. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from submitrain.events import Kind

if TYPE_CHECKING:
    from submitrain.monitor.accounting.goodput import GoodputRecords


Event = dict[str, Any]


@dataclass(frozen=True)
class Span:
    """One allocation; ``ended_us`` None while it lasts."""

    job_id: str
    started_us: int
    ended_us: int | None = None


@dataclass(frozen=True)
class Allocation:
    """One allocation with both its ends."""

    job_id: str
    started_us: int
    ended_us: int


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
    cause: str
    """Why it ended, as attempts.jsonl says; empty where it says nothing."""
    world_size: int
    capacity: int
    """Ranks that the allocation has room for: spare nodes count."""
    job_started_us: int


def attempt_times(records: GoodputRecords) -> list[AttemptTime]:
    """All attempts in order of their numbers."""
    starts: dict[int, Event] = {}
    ends: dict[int, list[Event]] = {}
    for event in records.attempts:
        number = event.get("attempt")
        if not isinstance(number, int) or time_us(event) is None:
            continue
        if event["kind"] == Kind.ATTEMPT_START:
            starts.setdefault(number, event)
        elif event["kind"] == Kind.ATTEMPT_END:
            ends.setdefault(number, []).append(event)
    seen = _last_signs(records.events)
    newest = max(starts, default=0)
    times = []
    for number in sorted(starts):
        live = number == newest and not records.ended and number not in ends
        until = us_of(records.now) if live else seen.get(number, 0)
        times.append(_attempt(starts[number], ends.get(number, []), until, live=live))
    return times


def _attempt(start: Event, ends: Sequence[Event], until_us: int, *, live: bool) -> AttemptTime:
    started_us = time_us(start) or 0
    cause = str(ends[-1].get("cause") or "") if ends else ""
    if ends and cause != "lost":
        until_us = time_us(ends[0]) or started_us
    world_size = _positive(start.get("world_size"), 1)
    nodes = start.get("nodes")
    used = len(nodes) if isinstance(nodes, list) and nodes else 1
    held = _positive(start.get("allocated_nodes"), used)
    job_started_us = us_of(start.get("job_started_at"))
    return AttemptTime(
        attempt=start["attempt"],
        job_id=str(start.get("job_id", "")),
        restart=_positive(start.get("restart_count"), 0),
        started_us=started_us,
        ended_us=max(started_us, until_us),
        ended=not live,
        cause=cause if ends or live else "lost",
        world_size=world_size,
        capacity=max(world_size, world_size * held // used),
        job_started_us=min(started_us, job_started_us or started_us),
    )


def allocations(
    records: GoodputRecords, times: Sequence[AttemptTime]
) -> list[tuple[Allocation, list[AttemptTime]]]:
    """Every allocation of the run with its attempts, in the order of time."""
    now_us = us_of(records.now)
    found: list[tuple[Allocation, list[AttemptTime]]] = [
        (
            Allocation(
                span.job_id,
                span.started_us,
                max(span.started_us, now_us if span.ended_us is None else span.ended_us),
            ),
            [],
        )
        for span in records.jobs
    ]
    for own, members in _own_allocations(records, times):
        place = _best(found, own)
        if place is None:
            found.append((own, members))
            continue
        span, before = found[place]
        merged = Allocation(
            own.job_id, min(span.started_us, own.started_us), max(span.ended_us, own.ended_us)
        )
        found[place] = (merged, sorted([*before, *members], key=lambda one: one.attempt))
    return [(span, _one_after_another(span, members)) for span, members in _apart(found)]


def _own_allocations(
    records: GoodputRecords, times: Sequence[AttemptTime]
) -> list[tuple[Allocation, list[AttemptTime]]]:
    """Allocations as far as the supervisor's records show them."""
    local = {
        str(line.get("job_id")): t
        for line in records.submissions
        if line.get("cluster") == "local" and (t := time_us(line)) is not None
    }
    groups: dict[tuple[str, int], list[AttemptTime]] = {}
    for one in times:
        groups.setdefault((one.job_id, one.restart), []).append(one)
    found = []
    for (job_id, _), members in groups.items():
        started = min(one.job_started_us for one in members)
        # A local job has its machine from the moment of its submission.
        started = min(started, local.get(job_id, started))
        ended = max(one.ended_us for one in members)
        found.append((Allocation(job_id, started, max(started, ended)), members))
    return found


def _best(found: Sequence[tuple[Allocation, list[AttemptTime]]], own: Allocation) -> int | None:
    """The scheduler's allocation that shares most time with this one; clocks may differ by 1 s."""
    best, place = -1_000_000, None
    for index, (span, _) in enumerate(found):
        shared = min(span.ended_us, own.ended_us) - max(span.started_us, own.started_us)
        if span.job_id == own.job_id and shared > best:
            best, place = shared, index
    return place


def _apart(
    found: Sequence[tuple[Allocation, list[AttemptTime]]],
) -> list[tuple[Allocation, list[AttemptTime]]]:
    """A job holds its nodes once: where two stretches of it overlap, the later one has the time."""
    ordered = sorted(found, key=lambda item: (item[0].started_us, item[0].ended_us))
    result = []
    for index, (span, members) in enumerate(ordered):
        later = [other for other, _ in ordered[index + 1 :] if other.job_id == span.job_id]
        end = min([span.ended_us, *(other.started_us for other in later)])
        result.append((replace(span, ended_us=max(span.started_us, end)), members))
    return result


def _one_after_another(span: Allocation, members: Sequence[AttemptTime]) -> list[AttemptTime]:
    """Within an allocation an attempt is over, at the latest, when the next one begins."""
    result = []
    for index, one in enumerate(members):
        end = span.ended_us if one.cause == "lost" or not one.ended else one.ended_us
        end = min([end, *(later.started_us for later in members[index + 1 :])])
        result.append(replace(one, ended_us=max(one.started_us, end)))
    return result


def queued_us(records: GoodputRecords, times: Sequence[AttemptTime]) -> int:
    """Time that the run's jobs spent in the queue, before each of their allocations."""
    held: dict[str, list[Allocation]] = {}
    for span, _ in allocations(records, times):
        held.setdefault(span.job_id, []).append(span)
    total = 0
    for line in records.submissions:
        at = time_us(line)
        if at is None:
            continue
        for span in held.get(str(line.get("job_id")), []):
            total += max(0, span.started_us - at)
            at = max(at, span.ended_us)
        if records.pending and line is records.submissions[-1]:
            total += max(0, us_of(records.now) - at)
    return total


def time_us(event: Event) -> int | None:
    """When an event was written; None where it does not say."""
    t = event.get("t")
    if isinstance(t, bool) or not isinstance(t, int | float) or not math.isfinite(t) or t < 0:
        return None
    return round(t * 1e6)


def us_of(value: object) -> int:
    """A time or duration in seconds as microseconds; 0 for anything else."""
    return time_us({"t": value}) or 0


def _last_signs(events: Sequence[Event]) -> dict[int, int]:
    signs: dict[int, int] = {}
    for event in events:
        attempt, t = event.get("attempt"), time_us(event)
        if isinstance(attempt, int) and t is not None:
            signs[attempt] = max(t, signs.get(attempt, 0))
    return signs


def _positive(value: object, otherwise: int) -> int:
    valid = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return int(value) if valid else otherwise  # type: ignore[call-overload]


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


@dataclass
class Ledger:
    """Books the time from each mark to the next one; time never runs backwards here."""

    at_us: int
    end_us: int
    wall: dict[Category, int]
    ranks: dict[Category, int]
    category: Category = Category.UNEXPLAINED
    capacity: int = 1
    """Ranks that the allocation has room for."""
    limit_us: int = 0
    """No mark of the attempt that runs is later: ranks of an old one may still write."""
    world_size: int = 0
    """Ranks of the attempt that runs; 0 between attempts, when the whole allocation waits."""
    number: int = 0
    """The attempt that runs, or ran last."""
    stretches: list[Stretch] | None = None
    """What was booked, in the order of time; None where only the sums are wanted."""

    def mark(self, t_us: int, category: Category) -> None:
        """From here on the time belongs to ``category``."""
        self._book(t_us)
        self.category = category

    def attempt(self, t_us: int, one: AttemptTime | None) -> None:
        """An attempt begins, or the last one is over and the whole allocation waits."""
        self.limit_us = self.end_us
        self.mark(t_us, Category.STARTUP if one is not None else Category.WAITING)
        self.limit_us = one.ended_us if one is not None else self.end_us
        self.number = one.attempt if one is not None else self.number
        self.world_size = one.world_size if one is not None else 0
        self.capacity = one.capacity if one is not None else self.capacity

    def close(self) -> None:
        """Book the rest."""
        self.limit_us = self.end_us
        self._book(self.end_us)

    def _book(self, t_us: int) -> None:
        until = max(self.at_us, min(t_us, self.end_us, self.limit_us))
        begin, spent, self.at_us = self.at_us, until - self.at_us, until
        busy = self.world_size or self.capacity
        if spent and self.stretches is not None:
            stretch = Stretch(begin, until, self.category, busy, self.capacity, self.number)
            self.stretches.append(stretch)
        self.wall[self.category] += spent
        self.ranks[self.category] += spent * busy
        self.ranks[Category.SPARE] += spent * (self.capacity - busy)
