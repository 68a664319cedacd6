"""Whether two runs computed the same thing: step by step, to the last bit. Reads run folders only.

Losses and gradient norms are compared as the hex floats that rank 0 recorded; consumed samples as
the union over ranks. A step that was computed again after a restart must have given the same
numbers both times.

How long it took from an interruption to the first new optimizer step, and where the time went.

Told from what supervisor and ranks recorded; a part that nobody recorded is simply not there.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt, read_attempts
from submitrain.events import Kind, Phase, read_events
from submitrain.run_folder import RunDir

MANY = 6
"""So many steps are named in a sentence."""


@dataclass(frozen=True)
class StepValues:
    """What rank 0 recorded of one step."""

    loss_hex: str
    grad_norm_hex: str
    world_size: int
    """Ranks that computed it; 0 when no supervisor recorded it."""

    @property
    def loss(self) -> float:
        """Nats per label token."""
        return float.fromhex(self.loss_hex)

    @property
    def grad_norm(self) -> float:
        """2-norm of the whole gradient before clipping."""
        return float.fromhex(self.grad_norm_hex)

    def same(self, other: StepValues) -> bool:
        """Whether both numbers are those of ``other``, bit for bit."""
        return (self.loss_hex, self.grad_norm_hex) == (other.loss_hex, other.grad_norm_hex)

    def distance(self, other: StepValues) -> float:
        """The larger relative difference of loss and gradient norm."""
        pairs = [(self.loss, other.loss), (self.grad_norm, other.grad_norm)]
        return max(_relative(a, b) for a, b in pairs)


@dataclass(frozen=True)
class Curve:
    """All steps of a run; of a step computed several times, the last computation holds."""

    steps: Mapping[int, StepValues]
    recomputed: int
    """How many computations were repetitions."""
    contradictory: tuple[int, ...]
    """Steps that gave other numbers when they were computed again by as many ranks."""


@dataclass(frozen=True)
class Comparison:
    """How a run differs from another one; the empty one does not."""

    steps: int
    """Steps of the other run."""
    missing: tuple[int, ...] = ()
    surplus: tuple[int, ...] = ()
    different: tuple[int, ...] = ()
    """Steps with another loss or gradient norm, computed by as many ranks."""
    rescaled: tuple[int, ...] = ()
    """Steps with other numbers, computed by another number of ranks: another order of summation."""
    contradictory: tuple[int, ...] = ()
    samples: tuple[int, ...] = ()
    """Steps that consumed other samples."""
    largest_relative: float = 0.0
    """Largest relative difference of a loss or gradient norm."""

    @property
    def identical(self) -> bool:
        """Same steps, same samples, and the same numbers to the last bit."""
        return self.alike and not self.rescaled

    @property
    def alike(self) -> bool:
        """Identical, or different only where the number of ranks was another one."""
        return self.steps > 0 and not (
            self.missing or self.surplus or self.different or self.contradictory or self.samples
        )

    @property
    def text(self) -> str:
        """One sentence."""
        if not self.steps:
            return "there is nothing to compare with"
        if self.identical:
            return f"identical in all {self.steps} steps, bit for bit"
        parts = [
            f"{words} {_named(steps)}"
            for words, steps in (
                ("missing", self.missing),
                ("surplus", self.surplus),
                ("other numbers in", self.different),
                ("other numbers at another number of ranks in", self.rescaled),
                ("other numbers when computed again in", self.contradictory),
                ("other samples in", self.samples),
            )
            if steps
        ]
        largest = f"; largest relative difference {self.largest_relative:.1e}"
        return "; ".join(parts) + (largest if self.largest_relative else "")


def compare_runs(folder: Path, reference: Path) -> Comparison:
    """How the run in ``folder`` differs from the one in ``reference``."""
    return compare_curves(read_curve(folder), read_curve(reference), _samples(folder, reference))


def compare_curves(got: Curve, expected: Curve, samples: tuple[int, ...] = ()) -> Comparison:
    """The same from what was read; ``samples`` are steps that consumed other samples."""
    both = sorted(set(got.steps) & set(expected.steps))
    pairs = {step: (got.steps[step], expected.steps[step]) for step in both}
    unequal = [step for step, (a, b) in pairs.items() if not a.same(b)]
    same_world = {step: a.world_size == b.world_size for step, (a, b) in pairs.items()}
    return Comparison(
        steps=len(expected.steps),
        missing=tuple(sorted(set(expected.steps) - set(got.steps))),
        surplus=tuple(sorted(set(got.steps) - set(expected.steps))),
        different=tuple(step for step in unequal if same_world[step]),
        rescaled=tuple(step for step in unequal if not same_world[step]),
        contradictory=got.contradictory,
        samples=samples,
        largest_relative=max((a.distance(b) for a, b in pairs.values()), default=0.0),
    )


def read_curve(folder: Path) -> Curve:
    """The curve of the run in ``folder``; empty when it recorded no step."""
    run_dir = RunDir(folder)
    worlds = {one.number: one.world_size for one in read_attempts(run_dir)}
    steps: dict[int, StepValues] = {}
    recomputed, contradictory = 0, set()
    for event in read_events(run_dir.events(0), kinds=frozenset({Kind.STEP})):
        step, world = event["step"], worlds.get(event.get("attempt", 0), 0)
        # A training function of the user's own may record no gradient norm.
        values = StepValues(event["loss_hex"], event.get("grad_norm_hex", "nan"), world)
        before = steps.get(step)
        if before is not None:
            recomputed += 1
            if before.world_size == world and not before.same(values):
                contradictory.add(step)
        steps[step] = values
    return Curve(steps, recomputed, tuple(sorted(contradictory)))


def read_consumed(folder: Path) -> dict[int, list[int]]:
    """Sorted ids of the samples that all ranks together consumed in each step.

    Only runs with ``logging.log_sample_ids`` record them. Of a step computed again, the newest
    attempt's samples count.
    """
    shares: dict[int, dict[tuple[int, int], list[int]]] = defaultdict(dict)
    for path in sorted(RunDir(folder).events_dir.glob("rank*.jsonl")):
        for event in read_events(path, kinds=frozenset({Kind.SAMPLES})):
            shares[event["step"]][(event["attempt"], event["rank"])] = event["ids"]
    return {step: _of_newest_attempt(of_step) for step, of_step in shares.items()}


def _of_newest_attempt(shares: Mapping[tuple[int, int], list[int]]) -> list[int]:
    newest = max(attempt for attempt, _ in shares)
    return sorted(i for (attempt, _), ids in shares.items() if attempt == newest for i in ids)


def _samples(folder: Path, reference: Path) -> tuple[int, ...]:
    got, expected = read_consumed(folder), read_consumed(reference)
    both = set(got) & set(expected)
    return tuple(sorted(step for step in both if got[step] != expected[step]))


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


def _named(steps: tuple[int, ...]) -> str:
    shown = ", ".join(str(step) for step in steps[:MANY])
    more = f" and {len(steps) - MANY} more" if len(steps) > MANY else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"


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


def read_recoveries(folder: Path, faults: Sequence[float] = ()) -> list[Recovery]:
    """Every recovery of a run; ``faults`` are the known times of interruptions (UTC seconds)."""
    stories = read_attempts(RunDir(folder))
    events = list(read_events(RunDir(folder).events(0)))
    by_attempt = {
        story.number: [e for e in events if e.get("attempt") == story.number] for story in stories
    }
    found = []
    for index, story in enumerate(stories[:-1]):
        after = next((s for s in stories[index + 1 :] if _steps(by_attempt[s.number])), None)
        if after is not None and story.ended_at is not None:
            found.append(_recovery(story, after, by_attempt[after.number], faults))
    return found


def _recovery(
    story: Attempt, after: Attempt, events: list[Event], faults: Sequence[float]
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
        attempt=story.number,
        cause=str(story.cause or ""),
        action=str(story.action or ""),
        began=began,
        total_s=round(before - began, 3),
        seconds=seconds,
        reached=story.last_step or 0,
        resumed=resumed,
    )


def _marks(story: Attempt, after: Attempt, events: list[Event]) -> dict[str, float]:
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


def _time_of_fault(story: Attempt, faults: Sequence[float]) -> float | None:
    """The last known interruption before the end of the attempt, and after its start."""
    begin, end = story.started_at or 0.0, story.ended_at or 0.0
    return max((t for t in faults if begin <= t <= end), default=None)


def _steps(events: list[Event]) -> list[Event]:
    return [event for event in events if event["kind"] == Kind.STEP]
