"""Whether two runs computed the same thing, and what an interruption cost. Reads run folders only.

Losses and gradient norms are compared as the hex floats that rank 0 recorded; consumed samples as
the union over ranks. A step that was computed again after a restart must have given the same
numbers both times.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitrain.attempts import Attempt, read_attempts
from submitrain.events import Event, Kind, Phase, read_events
from submitrain.run_folder import RunDir

MANY = 6
"""So many steps are named in a sentence."""


@dataclass(frozen=True)
class StepValues:
    """What rank 0 recorded of one step: nats per label token, and the norm before clipping."""

    loss_hex: str
    grad_norm_hex: str
    world_size: int
    """Ranks that computed it; 0 when no supervisor recorded it."""

    @property
    def loss(self) -> float:
        """Nats per label token."""
        return float.fromhex(self.loss_hex)

    def same(self, other: StepValues) -> bool:
        """Whether both numbers are those of ``other``, bit for bit."""
        return (self.loss_hex, self.grad_norm_hex) == (other.loss_hex, other.grad_norm_hex)

    def distance(self, other: StepValues) -> float:
        """The larger relative difference of loss and gradient norm."""
        norms = (float.fromhex(one.grad_norm_hex) for one in (self, other))
        return max(_relative(self.loss, other.loss), _relative(*norms))


def _relative(a: float, b: float) -> float:
    if a == b or (math.isnan(a) and math.isnan(b)):
        return 0.0
    if not (math.isfinite(a) and math.isfinite(b)):
        return math.inf
    return abs(a - b) / max(abs(a), abs(b))


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
        found = {
            "missing": self.missing,
            "surplus": self.surplus,
            "other numbers in": self.different,
            "other numbers at another number of ranks in": self.rescaled,
            "other numbers when computed again in": self.contradictory,
            "other samples in": self.samples,
        }
        parts = [f"{words} {_named(steps)}" for words, steps in found.items() if steps]
        if self.largest_relative:
            parts.append(f"largest relative difference {self.largest_relative:.1e}")
        return "; ".join(parts)


def _named(steps: tuple[int, ...]) -> str:
    shown = ", ".join(str(step) for step in steps[:MANY])
    more = f" and {len(steps) - MANY} more" if len(steps) > MANY else ""
    return f"step{'s' if len(steps) > 1 else ''} {shown}{more}"


def compare_runs(folder: Path, reference: Path) -> Comparison:
    """How the run in ``folder`` differs from the one in ``reference``."""
    got, expected = read_curve(folder), read_curve(reference)
    samples, expected_samples = read_consumed(folder), read_consumed(reference)
    both = sorted(got.steps.keys() & expected.steps.keys())
    pairs = {step: (got.steps[step], expected.steps[step]) for step in both}
    unequal = {
        step: a.world_size == b.world_size for step, (a, b) in pairs.items() if not a.same(b)
    }
    return Comparison(
        steps=len(expected.steps),
        missing=tuple(sorted(expected.steps.keys() - got.steps.keys())),
        surplus=tuple(sorted(got.steps.keys() - expected.steps.keys())),
        different=tuple(step for step, same_world in unequal.items() if same_world),
        rescaled=tuple(step for step, same_world in unequal.items() if not same_world),
        contradictory=got.contradictory,
        samples=tuple(
            step
            for step in sorted(samples.keys() & expected_samples.keys())
            if samples[step] != expected_samples[step]
        ),
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
    found: dict[int, dict[int, dict[int, list[int]]]] = defaultdict(lambda: defaultdict(dict))
    for path in sorted(RunDir(folder).events_dir.glob("rank*.jsonl")):
        for event in read_events(path, kinds=frozenset({Kind.SAMPLES})):
            found[event["step"]][event["attempt"]][event["rank"]] = event["ids"]
    return {
        step: sorted(itertools.chain.from_iterable(attempts[max(attempts)].values()))
        for step, attempts in found.items()
    }


PARTS: dict[str, str] = {
    "noticed": "until the supervisor saw it",
    "ended": "until all ranks were gone and the end was recorded",
    "restarted": "until the next attempt was claimed: a pause, or the queue",
    "spawned": "until rank 0 wrote its first event",
    "imports": "reading the configuration, importing torch",
    "rendezvous": "finding the other ranks",
    "data": "opening the prepared data",
    "build": "building and sharding the model",
    "load": "loading and verifying the checkpoint",
    "first_step": "reading the first batch and computing the first step",
}
"""Parts of a recovery in the order of time, and what happens in each."""
_PHASES = (Phase.RENDEZVOUS, Phase.DATA, Phase.BUILD, Phase.LOAD, Phase.FIRST_STEP)
"""Those that rank 0 tells the begin of; named as the parts are."""


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
    """Of ``PARTS``, in order; their sum is ``total_s``. A part that nobody recorded is missing."""
    reached: int
    """Last step before the interruption."""
    resumed: int
    """Step of the checkpoint from which it resumed; 0 is the beginning."""

    @property
    def lost_steps(self) -> int:
        """Finished steps that had to be computed again."""
        return max(0, self.reached - self.resumed)


def read_recoveries(folder: Path, faults: Sequence[float] = ()) -> list[Recovery]:
    """Every recovery of a run; ``faults`` are the known times of interruptions (UTC seconds)."""
    attempts = read_attempts(RunDir(folder))
    events: dict[int | None, list[Event]] = defaultdict(list)
    for event in read_events(RunDir(folder).events(0)):
        events[event.get("attempt")].append(event)
    stepped = [one for one in attempts if any(e["kind"] == Kind.STEP for e in events[one.number])]
    found = []
    for one in attempts[:-1]:
        after = next((later for later in stepped if later.number > one.number), None)
        if after is not None and one.ended_at is not None:
            found.append(_recovery(one, after, events[after.number], faults))
    return found


def _recovery(
    ended: Attempt, after: Attempt, events: list[Event], faults: Sequence[float]
) -> Recovery:
    """``events`` are those of rank 0 in the attempt ``after``."""
    marks = _marks(ended, after, events)
    hits = [t for t in faults if ended.started_at <= t <= (ended.ended_at or 0.0)]
    began = max(hits, default=min(marks.values()))
    seconds, before = {}, began
    for part, t in marks.items():
        seconds[part] = round(max(began, t) - before, 3)
        before = max(began, t)
    return Recovery(
        attempt=ended.number,
        cause=str(ended.cause or ""),
        action=str(ended.action or ""),
        began=began,
        total_s=round(before - began, 3),
        seconds=seconds,
        reached=ended.last_step or 0,
        resumed=next((e["step"] for e in events if e["kind"] == Kind.RESUME), 0),
    )


def _marks(ended: Attempt, after: Attempt, events: list[Event]) -> dict[str, float]:
    """When each part was over (UTC seconds), in the order of ``PARTS``."""
    begins: dict[str, float] = {}
    for event in events:
        if event["kind"] == Kind.PHASE and event.get("phase") in _PHASES:
            begins.setdefault(event["phase"], event["t"])
    marks: dict[str, float | None] = {
        "noticed": ended.noticed_at,
        "ended": ended.ended_at,
        "restarted": after.started_at,
        "spawned": next((e["t"] for e in events if e["kind"] == Kind.START), None),
    }
    # Each part lasts until the next one begins, the last one until the first step is over.
    parts = ["imports", *(part for part in PARTS if part in begins)]
    marks |= {part: begins[following] for part, following in itertools.pairwise(parts)}
    marks[parts[-1]] = next(e["t"] for e in events if e["kind"] == Kind.STEP)
    return {part: t for part in PARTS if (t := marks.get(part)) is not None}
