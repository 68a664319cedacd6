"""Follows one run of a drill to its end, and acts on it from outside where the scenario says so."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass, field

from submitrain.errors import SubmitrainError, UserError
from submitrain.events import EventTail, Kind, read_events
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.drill.result import Injection
from submitrain.launcher.drill.scenarios import ExternalAction, Scenario, Steps
from submitrain.launcher.run import Run
from submitrain.slurm.client import requeue_job
from submitrain.status import RunState, RunStatus

POLL_S = 0.1
STATUS_EVERY_S = {"local": 1.0, "slurm": 10.0}
ABORT_S = 120.0
"""Seconds that a cancelled run gets to save and end."""


@dataclass
class Followed:
    """How a run that was followed ended."""

    status: RunStatus
    duration_s: float = 0.0
    external: list[Injection] = field(default_factory=list)
    """What was done from outside."""
    problem: str = ""
    """Why what was to be done from outside could not be done, or why the drill gave up."""


@dataclass
class Follower:
    """Follows ``run``; more than ``patience_s`` seconds without a new step are too many."""

    run: Run
    scenario: Scenario | None
    steps: Steps
    patience_s: float
    expected_s: float | None
    screen: Screen

    def __post_init__(self) -> None:
        self._found = Followed(self.run.status())
        self._began = self._asked = self._advanced_at = time.monotonic()
        self._tail = EventTail(self.run.run_dir.events(0), 0)
        self._step = self._attempt = 0
        self._resumed = self._gave_up = False

    def to_the_end(self) -> Followed:
        """Until the run has ended, or does not end although it was cancelled."""
        about = "" if self.expected_s is None else f" of about {self.expected_s:.0f} s"
        while True:
            self._read()
            self._act()
            status = self._status()
            over = status.state.ended and not self._resume(status)
            if over or self._lost_patience(status):
                self._found.duration_s = time.monotonic() - self._began
                return self._found
            again = f", attempt {self._attempt}" if self._attempt > 1 else ""
            state = f"{status.state}" + (f" ({status.why})" if status.why else "")
            since = f"{time.monotonic() - self._began:.0f} s{about}"
            at = f"step {self._step}/{self.steps.total}{again}"
            self.screen.doing(f"{since}: {state}, {at}")
            time.sleep(POLL_S)

    def _read(self) -> None:
        """Where rank 0 is, from what it appended."""
        for event in self._tail.read():
            if event.get("attempt", 0) != self._attempt:
                self._attempt, self._advanced_at = event.get("attempt", 0), time.monotonic()
            if event["kind"] == Kind.STEP:
                self._step, self._advanced_at = event["step"], time.monotonic()

    def _status(self) -> RunStatus:
        """The run's state, asked for now and then, and at once when a summary appears."""
        every_s = STATUS_EVERY_S.get(self._found.status.cluster, 1.0)
        due = time.monotonic() - self._asked >= every_s
        if due or self.run.run_dir.summary.exists():
            self._found.status, self._asked = self.run.status(), time.monotonic()
        return self._found.status

    def _act(self) -> None:
        scenario, found = self.scenario, self._found
        if scenario is None or scenario.action is None or found.external or found.problem:
            return
        if self._step < scenario.step(self.steps):
            return
        t = time.time()
        try:
            stop = scenario.action is ExternalAction.STOP
            what = _stop(self.run) if stop else _requeue(self.run)
        except SubmitrainError as error:
            found.problem = str(error)
            self.screen.say(f"  not done: {error}")
            return
        found.external.append(Injection(what, t, self._step + 1, self._attempt, None, ""))
        self.screen.say(f"  {what} in step {self._step + 1}")

    def _resume(self, status: RunStatus) -> bool:
        """Resume a run that the drill has stopped; whether it runs again."""
        stops = self.scenario is not None and self.scenario.action is ExternalAction.STOP
        if not stops or not self._found.external or self._resumed or self._gave_up:
            return False
        self._resumed = True
        if status.state is RunState.FINISHED:
            return False
        try:
            self.run.resume()
        except SubmitrainError as error:
            self._found.problem = str(error)
            return False
        self.screen.say("  resumed")
        self._found.status = self.run.status()
        return True

    def _lost_patience(self, status: RunStatus) -> bool:
        """Cancel a run that makes no step; whether to wait no longer for its end either."""
        if status.state is RunState.QUEUED:
            self._advanced_at = time.monotonic()
        idle_s = time.monotonic() - self._advanced_at
        if self._gave_up:
            return idle_s >= ABORT_S
        if idle_s < self.patience_s:
            return False
        self._gave_up, self._advanced_at = True, time.monotonic()
        self._found.problem = f"no new step in {idle_s:.0f} s: the drill gave up"
        self.screen.say(f"  {self._found.problem}")
        with suppress(SubmitrainError):  # it may have ended by itself in this very moment
            self.run.cancel()
        return False


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
    job_id = str(list(read_events(run.run_dir.submissions))[-1]["job_id"])
    answer = requeue_job(job_id, incomplete=False)
    if answer.code != 0:
        raise UserError(f"scontrol requeue {job_id}: {answer.error or 'no answer'}")
    return "requeued"
