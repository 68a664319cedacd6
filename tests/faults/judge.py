"""What came of each row, read from the run folder: cause, action, words, steps lost, the curve."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from submitrain.attempts import Action, Attempt, read_attempts
from submitrain.events import Kind, read_events
from submitrain.run_folder import RunDir
from tests.faults.drive import Played, Strike
from tests.faults.rows import Expected, Loss, Row
from tests.faults.site import CHECKPOINT_EVERY
from tests.tiny import consumed, curve

INTERVALS: dict[Loss, int] = {"nothing": 0, "one interval": 1, "two intervals": 2}


@dataclass
class Verdict:
    """One line of the matrix."""

    course: str
    row: str
    injected: str
    cause: str = ""
    action: str = ""
    explanation: str = ""
    recovery_s: float | None = None
    """From the strike to the next attempt's first step; None where the attempt went on."""
    recomputed: int | None = None
    """Steps that were computed again."""
    identical: bool = False
    problems: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass
class Judge:
    """Judges one course against the undisturbed run."""

    played: Played
    reference: Path

    def __post_init__(self) -> None:
        run_dir = RunDir(self.played.run.folder)
        self.records = {one.number: one for one in read_attempts(run_dir)}
        events = list(read_events(run_dir.events(0)))
        self.steps = [event for event in events if event["kind"] == Kind.STEP]
        self.resumes = {e["attempt"]: e["step"] for e in events if e["kind"] == Kind.RESUME}
        self.saved = [event for event in events if event["kind"] == Kind.CHECKPOINT]
        self.expected_curve = curve(self.reference)

    def verdicts(self) -> Iterator[Verdict]:
        """One for each row, then one for the run as a whole."""
        for row in self.played.course.rows:
            yield self._of_row(row)
        yield self._of_run()

    def _of_row(self, row: Row) -> Verdict:
        verdict = Verdict(self.played.course.name, row.name, row.injected)
        strike = self.played.strikes.get(row.name)
        if row.name in self.played.problems:
            verdict.problems.append(self.played.problems[row.name])
        if strike is None:
            verdict.problems.append("the fault did not fire")
            return verdict
        record = self.records.get(strike.attempt)
        if record is None:
            verdict.problems.append(f"attempt {strike.attempt} is not recorded")
            return verdict
        self._judge_end(verdict, row.expected, strike, record)
        self._judge_steps(verdict, row.expected, strike)
        return verdict

    def _judge_end(
        self, verdict: Verdict, expected: Expected, strike: Strike, record: Attempt
    ) -> None:
        if not expected.ends:
            verdict.cause = "none"
            verdict.action = "goes on"
            if not any(one["attempt"] == strike.attempt for one in self._steps_after(strike)):
                verdict.problems.append(f"attempt {strike.attempt} made no step afterwards")
            return
        verdict.cause, verdict.action = str(record.cause), str(record.action)
        verdict.explanation = record.explanation
        if not re.fullmatch(str(expected.cause), verdict.cause):
            verdict.problems.append(f"cause: expected {expected.cause}, got {verdict.cause}")
        if expected.action and verdict.action != expected.action:
            verdict.problems.append(f"action: expected {expected.action}, got {verdict.action}")
        for says in expected.says:
            pattern = says.replace("{rank}", str(strike.rank)).replace("{node}", strike.node)
            if not re.search(pattern, record.explanation):
                verdict.problems.append(f"the explanation does not say {pattern!r}")

    def _steps_after(self, strike: Strike) -> list[dict[str, Any]]:
        return [event for event in self.steps if event["t"] > strike.t]

    def _judge_steps(self, verdict: Verdict, expected: Expected, strike: Strike) -> None:
        around = (strike.attempt, strike.attempt + 1)
        verdict.identical = all(
            self.expected_curve.get(event["step"]) == (event["loss_hex"], event["grad_norm_hex"])
            for event in self.steps
            if event["attempt"] in around
        )
        if not verdict.identical:
            verdict.problems.append("loss or gradient norm differ from the undisturbed run")
        if not expected.ends or verdict.action == Action.DONE:
            return
        later = [event for event in self.steps if event["attempt"] > strike.attempt]
        if later:
            verdict.recovery_s = round(later[0]["t"] - strike.t, 1)
        self._judge_loss(verdict, expected, strike)

    def _judge_loss(self, verdict: Verdict, expected: Expected, strike: Strike) -> None:
        """Steps computed again; a save that was on its way counts from its own step."""
        before = [event for event in self.steps if event["attempt"] <= strike.attempt]
        best = max((event["step"] for event in before), default=0)
        back_at = self._back_at(strike)
        verdict.recomputed = max(0, best - back_at)
        due = best // CHECKPOINT_EVERY * CHECKPOINT_EVERY
        saved = any(one["step"] >= due and one["attempt"] <= strike.attempt for one in self.saved)
        lost = max(0, (best if saved else due) - back_at)
        allowed = INTERVALS[expected.loses] * CHECKPOINT_EVERY
        if lost > allowed or (expected.loses == "nothing" and verdict.recomputed):
            verdict.problems.append(
                f"{verdict.recomputed} steps lost: from step {best} back to {back_at}; "
                f"allowed is {expected.loses}"
            )

    def _back_at(self, strike: Strike) -> int:
        """The step from which the next attempt that got so far went on."""
        starts = {event["attempt"]: event["step"] - 1 for event in reversed(self.steps)}
        starts |= self.resumes
        later = [number for number in sorted(starts) if number > strike.attempt]
        return starts[later[0]] if later else 0

    def _of_run(self) -> Verdict:
        """The whole: finished, every attempt accounted for, the same steps and samples."""
        verdict = Verdict(self.played.course.name, "the whole run", "all of these")
        last = self.records[max(self.records)]
        verdict.cause, verdict.action = str(last.cause), str(last.action)
        verdict.explanation = last.explanation
        verdict.problems += filter(None, [self.played.problems.get("end")])
        if self.played.state != "finished":
            verdict.problems.append(f"the run {self.played.state or 'did not end'}")
        verdict.problems += self._unexpected_ends()
        verdict.problems += differences(self.played.run.folder, self.reference)
        verdict.identical = not differences(self.played.run.folder, self.reference)
        return verdict

    def _unexpected_ends(self) -> Iterator[str]:
        """Attempts that ended although no fault should have ended them: misjudged."""
        rows = {row.name: row for row in self.played.course.rows}
        struck = {
            strike.attempt
            for name, strike in self.played.strikes.items()
            if rows[name].expected.ends
        }
        for record in self.records.values():
            cause = str(record.cause)
            if record.number in struck or cause in ("finished", *self.played.course.again):
                continue
            yield f"attempt {record.number} ended by itself: {cause}: {record.explanation}"


def differences(disturbed: Path, undisturbed: Path) -> list[str]:
    """How two runs differ in their steps' numbers and samples; every sample once per epoch."""
    problems: list[str] = []
    try:
        got = curve(disturbed)
    except AssertionError as error:
        return [str(error)]
    expected = curve(undisturbed)
    missing = sorted(set(expected) - set(got))
    if missing:
        problems.append(f"steps {missing} are missing")
    if different := [step for step in got if expected.get(step) != got[step]]:
        problems.append(f"steps {different} differ")
    samples, expected_samples = consumed(disturbed), consumed(undisturbed)
    if samples != expected_samples:
        wrong = [step for step in expected_samples if samples.get(step) != expected_samples[step]]
        problems.append(f"other samples in steps {wrong}")
    return problems


def samples_by_epoch(folder: Path) -> list[Counter[int]]:
    """How often each sample was consumed in each whole epoch."""
    epochs: dict[int, Counter[int]] = {}
    ids = consumed(folder)
    for event in read_events(RunDir(folder).events(0), kinds=frozenset({Kind.STEP})):
        epochs.setdefault(event["epoch"], Counter()).update(ids[event["step"]])
    return [epochs[number] for number in sorted(epochs)]
