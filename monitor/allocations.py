"""When a run held which resources: its attempts in time, grouped by allocation. Pure.

Times are whole microseconds since the epoch (UTC). An allocation is one stretch of one job: from
its start to its end or requeue. Where the scheduler does not tell, the supervisor's records do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from train.events import Kind

if TYPE_CHECKING:
    from monitor.goodput import GoodputRecords

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
