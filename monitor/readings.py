"""What single values a run folder's events hold. Pure; whatever is not there is None or empty."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable

from monitor.evidence import Event, RunEvidence
from train.events import Kind

RECENT_STEPS = 50


def skipped(evidence: RunEvidence) -> int:
    """Steps whose update was left out; what a later attempt computed again counts as it ended."""
    skipped: dict[int, bool] = {}
    for event in evidence.tail:
        step = event.get("step")
        if isinstance(step, int) and event["kind"] == Kind.STEP:
            skipped[step] = False
        elif isinstance(step, int) and event["kind"] == Kind.ANOMALY:
            skipped[step] = event.get("action") == "skipped"
    return sum(skipped.values())


def nodes(evidence: RunEvidence) -> tuple[str, ...]:
    """Nodes of the newest attempt."""
    for line in reversed(evidence.attempts):
        if line["kind"] == Kind.ATTEMPT_START:
            return tuple(str(node) for node in line.get("nodes") or ())
    return ()


def progress_at(tail: tuple[Event, ...]) -> float | None:
    """When rank 0 last wrote something but a sign of life."""
    idle = frozenset({Kind.HEARTBEAT, Kind.SAMPLES})
    return next((time_of(event) for event in reversed(tail) if event["kind"] not in idle), None)


def ended_at(evidence: RunEvidence) -> float | None:
    """When the last thing happened."""
    ends = (evidence.submission, *evidence.attempts[-1:], *evidence.tail[-1:])
    return max((t for event in ends if (t := time_of(event)) is not None), default=None)


def restarts(evidence: RunEvidence) -> dict[str, int]:
    """Attempts that another one followed, by cause."""
    causes: dict[int, str] = {}
    for line in evidence.attempts:
        attempt = line.get("attempt")
        if isinstance(attempt, int):
            causes[attempt] = str(line.get("cause") or causes.get(attempt) or "lost")
    followed = [cause for attempt, cause in causes.items() if attempt < evidence.newest_attempt]
    return dict(sorted(Counter(followed).items()))


def step_of(evidence: RunEvidence) -> int:
    """The newest step that any event names."""
    for event in reversed(evidence.tail):
        if isinstance(event.get("step"), int):
            return int(event["step"])
    return 0


def total_steps(evidence: RunEvidence) -> int | None:
    """Steps that were planned, as far as anybody said."""
    for event in reversed(evidence.tail):
        if isinstance(event.get("total_steps"), int):
            return int(event["total_steps"])
    planned = evidence.record.get("total_steps")
    return planned if isinstance(planned, int) else None


def eta_s(steps: list[Event], step: int, total: int | None) -> float | None:
    """Seconds for the steps that are left, at the median of the recent ones."""
    recent = [
        value
        for event in steps[-RECENT_STEPS:]
        if (value := number(event.get("step_s"))) is not None
    ]
    if total is None or not recent:
        return None
    return round(max(0, total - step) * statistics.median(recent), 1)


def newest_of(events: Iterable[Event], kind: Kind) -> Event:
    """The last event of a kind, or an empty one."""
    found: Event = {}
    for event in events:
        if event["kind"] == kind:
            found = event
    return found


def newest_number(events: tuple[Event, ...], key: str) -> float | None:
    """The newest number of that name."""
    return next((number(event[key]) for event in reversed(events) if key in event), None)


def number(value: object) -> float | None:
    """A number of an event, also one that is not finite."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        # JSON has no NaN, so it was written by name.
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def integer(value: object) -> int | None:
    """The same as an integer."""
    found = number(value)
    return None if found is None or not math.isfinite(found) else int(found)


def mapping(value: object) -> Event:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def time_of(event: Event | None) -> float | None:
    """When an event was written, UTC seconds."""
    return number(event.get("t")) if event else None
