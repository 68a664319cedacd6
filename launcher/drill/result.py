"""One run of a drill: what its folder tells, and whether that is what it should be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt, Cause, read_attempts
from submitrain.events import Kind, read_events
from submitrain.launcher.drill.compare import (
    Comparison,
    Recovery,
    compare_runs,
    read_recoveries,
)
from submitrain.launcher.drill.plan import PACE
from submitrain.launcher.drill.scenarios import Expected, Scenario
from submitrain.run_folder import RunDir
from submitrain.train.faults import read_fired

UNDISTURBED = "undisturbed"
CONTROL = "control"
INTERRUPTED = "interrupted"
"""State of a run that the user ended together with the drill."""


@dataclass(frozen=True)
class Injection:
    """One fault that really happened; ``t`` is UTC seconds, ``rank`` None = the whole run."""

    what: str
    t: float
    step: int
    attempt: int
    rank: int | None
    host: str


@dataclass(frozen=True)
class Outcome:
    """One run of the drill, judged."""

    id: str
    what: str
    folder: str
    state: str
    why: str
    duration_s: float
    injections: tuple[Injection, ...]
    attempts: tuple[Attempt, ...]
    recoveries: tuple[Recovery, ...]
    rejected: tuple[str, ...]
    """Checkpoints that were refused when the run resumed, and why."""
    comparison: Comparison | None
    """With the undisturbed run; None for that one itself."""
    losses: tuple[tuple[int, float], ...]
    """(step, loss) in the order in which they were computed: repetitions show."""
    ok: bool = False
    result: str = ""
    """One sentence."""
    advice: str = ""

    @property
    def cause(self) -> str:
        """How the first interrupted attempt was classified."""
        return str(self.attempts[0].cause or "") if self.attempts else ""

    @property
    def action(self) -> str:
        """What followed."""
        return str(self.attempts[0].action or "") if self.attempts else ""

    @property
    def recovery_s(self) -> float | None:
        """The longest recovery; None where there was none."""
        return max((one.total_s for one in self.recoveries), default=None)

    @property
    def lost_steps(self) -> int:
        """Finished steps that had to be computed again."""
        return sum(one.lost_steps for one in self.recoveries)

    def as_json(self) -> dict[str, Any]:
        """Plain values; times in seconds."""
        value = asdict(self)
        value["verdict"] = value.pop("result")
        value["attempts"] = [one.as_json() for one in self.attempts]
        value["losses"] = [(step, _json_number(loss)) for step, loss in self.losses]
        if self.comparison is not None:
            value["comparison"] |= {
                "identical": self.comparison.identical,
                "text": self.comparison.text,
                "largest_relative": _json_number(self.comparison.largest_relative),
            }
        for plain, one in zip(value["recoveries"], self.recoveries, strict=True):
            plain["lost_steps"] = one.lost_steps
        more = ("cause", "action", "recovery_s", "lost_steps")
        return {**value, **{name: getattr(self, name) for name in more}}


def _json_number(value: float) -> float | str:
    return value if math.isfinite(value) else str(value)


def read_outcome(
    scenario: Scenario | None,
    folder: Path,
    *,
    name: str,
    state: str,
    why: str,
    duration_s: float,
    external: Sequence[Injection] = (),
    reference: Path | None = None,
) -> Outcome:
    """What the run folder of one scenario tells; not judged yet."""
    run_dir = RunDir(folder)
    attempts = tuple(read_attempts(run_dir))
    if scenario is not None and scenario.short_time_limit:
        # It happens when the supervisor asks the ranks to stop for it.
        injections = tuple(
            Injection("time limit", one.noticed_at, one.last_step or 0, one.number, None, "")
            for one in attempts
            if one.cause is Cause.TIME_LIMIT and one.noticed_at is not None
        )
    else:
        inside = [
            Injection(
                f"{one.kind} at {one.moment}", one.t, one.step, one.attempt, one.rank, one.host
            )
            for one in read_fired(run_dir)
            if one.id.partition("~")[0] != PACE
        ]
        injections = tuple(sorted([*inside, *external], key=lambda one: one.t))
    events = list(read_events(run_dir.events(0)))
    return Outcome(
        id=name,
        what=scenario.what if scenario else "nothing happens",
        folder=str(folder),
        state=state,
        why=why,
        duration_s=round(duration_s, 1),
        injections=injections,
        attempts=attempts,
        recoveries=tuple(read_recoveries(folder, [one.t for one in injections])),
        rejected=tuple(
            f"{Path(event['path']).name}: {event['reason']}"
            for event in events
            if event["kind"] == Kind.CHECKPOINT_REJECTED
        ),
        comparison=None if reference is None else compare_runs(folder, reference),
        losses=tuple(
            (event["step"], float.fromhex(event["loss_hex"]))
            for event in events
            if event["kind"] == Kind.STEP
        ),
    )


def judged(outcome: Outcome, scenario: Scenario | None, *, control: Comparison | None) -> Outcome:
    """The outcome with its result, and advice where it is not what it should be.

    ``control`` compares a second undisturbed run with the first; None when there was no need.
    """
    if outcome.state == INTERRUPTED:
        ok, result, advice = False, "interrupted by you", ""
    elif scenario is None:
        ok, result, advice = _judge_undisturbed(outcome)
    else:
        ok, result, advice = _judge_disturbed(outcome, scenario, control)
    return replace(outcome, ok=ok, result=result, advice=advice)


def _judge_undisturbed(outcome: Outcome) -> tuple[bool, str, str]:
    if outcome.state != "finished":
        return False, f"the undisturbed run {outcome.state}: {outcome.why}", _diagnose(outcome)
    if outcome.comparison is not None and not outcome.comparison.identical:
        return False, f"undisturbed again: {outcome.comparison.text}", ""
    return True, "finished", ""


def _judge_disturbed(
    outcome: Outcome, scenario: Scenario, control: Comparison | None
) -> tuple[bool, str, str]:
    expected = " or ".join(sorted(scenario.causes))
    if not outcome.injections:
        why = f": {outcome.why}" if outcome.why else ""
        return (
            False,
            f"the fault did not happen; the run {outcome.state}{why}",
            "the run ended before it was due: give it more --steps, or see its logs",
        )
    if scenario.expected is Expected.STOP:
        if outcome.state == "failed" and outcome.cause in scenario.causes:
            return True, f"stopped at once, as it should: {outcome.why}", ""
        text = f"should have stopped as {expected}, but {outcome.state} as {outcome.cause}"
        return False, text, _diagnose(outcome)
    if outcome.state != "finished":
        why = outcome.why or "no reason recorded"
        return False, f"did not come back: {outcome.state} ({why})", _diagnose(outcome)
    otherwise = f" (classified as {outcome.cause}, expected {expected})"
    otherwise = "" if outcome.cause in scenario.causes else otherwise
    comparison = outcome.comparison or Comparison(0)
    if scenario.expected is Expected.FINISH:
        return True, f"finished{otherwise}", ""
    if comparison.alike:
        return True, f"{comparison.text}{otherwise}", ""
    return False, f"finished, {comparison.text}", _advice_on_a_difference(control)


def _diagnose(outcome: Outcome) -> str:
    return f"python -m monitor diagnose {outcome.folder}"


def _advice_on_a_difference(control: Comparison | None) -> str:
    if control is None:
        return ""
    if control.alike:
        return (
            "two undisturbed runs agree, so this recovery was not exact: look for state that is "
            "not a function of the step (a data set, optimizer or model of your own), and report it"
        )
    return (
        "two undisturbed runs of this configuration differ as well (largest relative difference "
        f"{control.largest_relative:.1e}): its kernels are not deterministic here, so that a "
        "difference says nothing about the recovery"
    )
