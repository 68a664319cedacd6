"""How long it took from an interruption to the first new optimizer step, and where the time went.

Told from what supervisor and ranks recorded; a part that nobody recorded is simply not there.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.events import Kind, Phase, read_events
from train.rundir import RunDir

Event = dict[str, Any]

PARTS: dict[str, str] = {
    "noticed": "until the supervisor saw it",
    "ended": "until all ranks were gone and the end was recorded",
    "restarted": "until the next attempt was claimed: a pause, or the queue",
    "spawned": "until rank 0 said its first word",
    "imports": "reading the configuration, importing torch",
    "rendezvous": "finding the other ranks",
    "data": "opening the prepared data",
    "build": "building and sharding the model",
    "load": "loading and verifying the checkpoint",
    "first_step": "reading the first batch and computing the first step",
}
"""Parts of a recovery in the order of time, and what happens in each."""

_BEGINS = {
    Phase.RENDEZVOUS: "rendezvous",
    Phase.DATA: "data",
    Phase.BUILD: "build",
    Phase.LOAD: "load",
    Phase.FIRST_STEP: "first_step",
}


@dataclass(frozen=True)
class AttemptStory:
    """One attempt as the supervisor recorded it. Times are UTC seconds, None where not recorded."""

    attempt: int
    world_size: int
    started_at: float | None
    noticed_at: float | None
    ended_at: float | None
    cause: str
    action: str
    explanation: str
    first_step: int | None
    last_step: int | None


@dataclass(frozen=True)
class Recovery:
    """From the end of one attempt to the first step of the next one that made a step."""

    attempt: int
    """The attempt that was interrupted."""
    cause: str
    action: str
    began: float
    """UTC seconds: the interruption itself where its time is known, else its first sign."""
    total_s: float
    """Seconds to the end of the first step that was computed afterwards."""
    seconds: Mapping[str, float]
    """Of ``PARTS``, in order; their sum is ``total_s``."""
    reached: int
    """Last step before the interruption."""
    resumed: int
    """Step of the checkpoint from which it went on; 0 is the beginning."""

    @property
    def lost_steps(self) -> int:
        """Finished steps that had to be computed again."""
        return max(0, self.reached - self.resumed)


def read_attempts(folder: Path) -> list[AttemptStory]:
    """All attempts of a run in order; of several ends of one attempt, the last line holds."""
    starts: dict[int, Event] = {}
    ends: dict[int, Event] = {}
    for event in read_events(RunDir(folder).attempts):
        if event["kind"] == Kind.ATTEMPT_START:
            starts[event["attempt"]] = event
        elif event["kind"] == Kind.ATTEMPT_END:
            ends[event["attempt"]] = event
    return [_story(number, starts[number], ends.get(number, {})) for number in sorted(starts)]


def read_recoveries(folder: Path, faults: Sequence[float] = ()) -> list[Recovery]:
    """Every recovery of a run; ``faults`` are the known times of interruptions (UTC seconds)."""
    stories = read_attempts(folder)
    events = list(read_events(RunDir(folder).events(0)))
    by_attempt = {
        story.attempt: [e for e in events if e.get("attempt") == story.attempt] for story in stories
    }
    found = []
    for index, story in enumerate(stories[:-1]):
        after = next((s for s in stories[index + 1 :] if _steps(by_attempt[s.attempt])), None)
        if after is not None and story.ended_at is not None:
            found.append(_recovery(story, after, by_attempt[after.attempt], faults))
    return found


def _recovery(
    story: AttemptStory, after: AttemptStory, events: list[Event], faults: Sequence[float]
) -> Recovery:
    marks = _marks(story, after, events)
    began = _time_of_fault(story, faults) or min(marks.values())
    marks = {part: max(began, t) for part, t in marks.items()}
    seconds, before = {}, began
    for part in PARTS:
        if part in marks:
            seconds[part] = round(marks[part] - before, 3)
            before = marks[part]
    resumed = next((e["step"] for e in events if e["kind"] == Kind.RESUME), 0)
    return Recovery(
        attempt=story.attempt,
        cause=story.cause,
        action=story.action,
        began=began,
        total_s=round(before - began, 3),
        seconds=seconds,
        reached=story.last_step or 0,
        resumed=resumed,
    )


def _marks(story: AttemptStory, after: AttemptStory, events: list[Event]) -> dict[str, float]:
    """When each part was over (UTC seconds), in the order of ``PARTS``."""
    marks: dict[str, float | None] = {
        "noticed": story.noticed_at,
        "ended": story.ended_at,
        "restarted": after.started_at,
        "spawned": next((e["t"] for e in events if e["kind"] == Kind.START), None),
    }
    begins = {
        _BEGINS[Phase(e["phase"])]: e["t"]
        for e in reversed(events)
        if e["kind"] == Kind.PHASE and e.get("phase") in _BEGINS
    }
    parts = ["imports", *[part for part in PARTS if part in begins]]
    for part, following in itertools.pairwise(parts):
        marks[part] = begins[following]
    marks[parts[-1]] = _steps(events)[0]["t"]
    return {part: t for part in PARTS if (t := marks.get(part)) is not None}


def _time_of_fault(story: AttemptStory, faults: Sequence[float]) -> float | None:
    """The last known interruption before the end of the attempt, and after its start."""
    begin, end = story.started_at or 0.0, story.ended_at or 0.0
    return max((t for t in faults if begin <= t <= end), default=None)


def _steps(events: list[Event]) -> list[Event]:
    return [event for event in events if event["kind"] == Kind.STEP]


def _story(number: int, start: Event, end: Event) -> AttemptStory:
    return AttemptStory(
        attempt=number,
        world_size=int(start.get("world_size") or 0),
        started_at=start.get("t"),
        noticed_at=end.get("noticed_at"),
        ended_at=end.get("t"),
        cause=str(end.get("cause", "")),
        action=str(end.get("action", "")),
        explanation=str(end.get("explanation", "")),
        first_step=end.get("first_step"),
        last_step=end.get("last_step"),
    )
