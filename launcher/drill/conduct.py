"""Conducts one run of a drill: follows it to its end and does what is to be done from outside."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from submitrain.errors import SubmitrainError, UserError
from submitrain.events import Kind, read_events
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.drill.judge import Injection
from submitrain.launcher.drill.scenarios import Hand, Scenario, Steps
from submitrain.launcher.run import Run
from submitrain.launcher.supervisor.rank_events import EventTail
from submitrain.slurm.client import ask
from submitrain.status import RunState, RunStatus

POLL_S = 0.1
STATUS_EVERY_S = {"local": 1.0, "slurm": 10.0}
ABORT_S = 120.0
"""Seconds that a cancelled run gets to save and end."""


@dataclass
class Conducted:
    """How a run was conducted."""

    status: RunStatus
    duration_s: float
    by_hand: list[Injection] = field(default_factory=list)
    problem: str = ""
    """Why what was to be done from outside could not be done, or why the drill gave up."""


@dataclass
class _Progress:
    """Where rank 0 is, read from what it appends."""

    tail: EventTail
    step: int = 0
    attempt: int = 0
    phase: str = ""
    advanced_at: float = field(default_factory=time.monotonic)

    def read(self) -> None:
        for event in self.tail.read():
            if event.get("attempt", 0) != self.attempt:
                self.attempt, self.advanced_at = event.get("attempt", 0), time.monotonic()
            if event["kind"] == Kind.STEP:
                self.step, self.advanced_at = event["step"], time.monotonic()
            self.phase = str(event.get("phase") or self.phase)


def conduct(
    run: Run,
    scenario: Scenario | None,
    *,
    steps: Steps,
    patience_s: float,
    expected_s: float | None,
    screen: Screen,
) -> Conducted:
    """Follow ``run`` to its end; ``patience_s`` seconds without a new step are too many."""
    about = "" if expected_s is None else f" of about {expected_s:.0f} s"
    return _Conductor(run, scenario, steps, patience_s, _Prefixed(screen, about)).to_the_end()


@dataclass(frozen=True)
class _Prefixed:
    """A screen for one run: how long it goes on already, and how long it should."""

    screen: Screen
    about: str
    began: float = field(default_factory=time.monotonic)

    def say(self, line: str) -> None:
        self.screen.say(f"  {line}")

    def doing(self, text: str) -> None:
        self.screen.doing(f"{time.monotonic() - self.began:.0f} s{self.about}: {text}")


class _Conductor:
    def __init__(
        self,
        run: Run,
        scenario: Scenario | None,
        steps: Steps,
        patience_s: float,
        screen: Screen,
    ) -> None:
        self._run, self._scenario, self._steps = run, scenario, steps
        self._patience_s, self._screen = patience_s, screen
        self._progress = _Progress(EventTail(run.run_dir.events(0), 0))
        self._conducted = Conducted(run.status(), 0.0)
        self._began = self._asked = time.monotonic()
        self._resumed = False
        self._gave_up = False

    def to_the_end(self) -> Conducted:
        while True:
            self._progress.read()
            self._lend_a_hand()
            status = self._status()
            over = status.state.ended and not self._resume(status)
            if over or self._lost_patience(status):
                self._conducted.duration_s = time.monotonic() - self._began
                return self._conducted
            self._tell(status)
            time.sleep(POLL_S)

    def _status(self) -> RunStatus:
        """The run's state, asked for now and then, and at once when a summary appears."""
        every_s = STATUS_EVERY_S.get(self._conducted.status.cluster, 1.0)
        due = time.monotonic() - self._asked >= every_s
        if due or self._run.run_dir.summary.exists():
            self._conducted.status, self._asked = self._run.status(), time.monotonic()
        return self._conducted.status

    def _lend_a_hand(self) -> None:
        scenario, done = self._scenario, self._conducted.by_hand or self._conducted.problem
        if scenario is None or scenario.hand is None or done:
            return
        if self._progress.step < scenario.step(self._steps):
            return
        t = time.time()
        try:
            what = _HANDS[scenario.hand](self._run)
        except SubmitrainError as error:
            self._conducted.problem = str(error)
            self._screen.say(f"not done: {error}")
            return
        progress = self._progress
        injection = Injection(what, t, progress.step + 1, progress.attempt, None, "")
        self._conducted.by_hand.append(injection)
        self._screen.say(f"{what} in step {injection.step}")

    def _resume(self, status: RunStatus) -> bool:
        """Resume a run that was stopped by us; whether it goes on now."""
        scenario = self._scenario
        stopped_by_us = scenario is not None and scenario.hand is Hand.STOP
        if not stopped_by_us or not self._conducted.by_hand or self._resumed or self._gave_up:
            return False
        self._resumed = True
        if status.state is RunState.FINISHED:
            return False
        try:
            self._run.resume()
        except SubmitrainError as error:
            self._conducted.problem = str(error)
            return False
        self._screen.say("resumed")
        self._conducted.status = self._run.status()
        return True

    def _lost_patience(self, status: RunStatus) -> bool:
        """Cancel a run that makes no step; whether to wait no longer for its end either."""
        progress = self._progress
        if status.state is RunState.QUEUED:
            progress.advanced_at = time.monotonic()
        idle_s = time.monotonic() - progress.advanced_at
        if self._gave_up:
            return idle_s >= ABORT_S
        if idle_s < self._patience_s:
            return False
        self._gave_up = True
        progress.advanced_at = time.monotonic()
        self._conducted.problem = f"no new step in {idle_s:.0f} s: the drill gave up"
        self._screen.say(self._conducted.problem)
        with suppress(SubmitrainError):  # it may have ended by itself in this very moment
            self._run.cancel()
        return False

    def _tell(self, status: RunStatus) -> None:
        progress = self._progress
        where = f"step {progress.step}/{self._steps.total}"
        again = f", attempt {progress.attempt}" if progress.attempt > 1 else ""
        state = f"{status.state}" + (f" ({status.why})" if status.why else "")
        self._screen.doing(f"{state}, {where}{again}")


def abort(run: Run, screen: Screen) -> RunStatus:
    """Cancel a run and wait until it has ended, for a while; a second Ctrl-C waits no longer."""
    try:
        run.cancel()
    except SubmitrainError as error:
        screen.say(f"  {error}")
    deadline = time.monotonic() + ABORT_S
    while not (status := run.status()).state.ended and time.monotonic() < deadline:
        screen.doing("saves and stops; Ctrl-C again waits no longer")
        time.sleep(0.5)
    return status


def _stop(run: Run) -> str:
    """Slurm users cancel a job; a local run gets what a shutdown sends."""
    if run.status().cluster == "slurm":
        run.cancel()
        return "cancelled"
    run.terminate()
    return "terminated"


def _requeue(run: Run) -> str:
    jobs = list(read_events(run.run_dir.submissions))
    job_id = str(jobs[-1]["job_id"])
    answer = ask(["scontrol", "requeue", job_id])
    if answer.code != 0:
        raise UserError(f"scontrol requeue {job_id}: {answer.error or 'no answer'}")
    return "requeued"


_HANDS: dict[Hand, Callable[[Run], str]] = {Hand.STOP: _stop, Hand.REQUEUE: _requeue}
