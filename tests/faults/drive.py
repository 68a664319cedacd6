"""Plays the rows of a course into one run, one after the other, whatever becomes of each."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from submitrain.launcher import Run
from submitrain.launcher.plan.prepare import prepare
from submitrain.launcher.submit.start import start
from submitrain.status import RunState
from submitrain.train.faults import Fault, plan_of, write_faults
from tests.faults.outside import ACTS, Scene
from tests.faults.rows import Course, Outside, Row
from tests.faults.site import Site, course_config
from tests.faults.watch import GaveUpError, RunWatch

RUN_S = 600.0
FOLLOW_S = 180.0
STATUS_EVERY_S = 2.0


@dataclass(frozen=True)
class Strike:
    """A fault that struck: proof that the row is more than a wish. ``t`` in UTC seconds."""

    attempt: int
    t: float
    rank: int | None
    node: str


@dataclass
class Played:
    """A course that was played: the run folder and what struck it."""

    course: Course
    run: Run
    strikes: dict[str, Strike] = field(default_factory=dict)
    """By the name of the row; a row that is missing did not happen."""
    problems: dict[str, str] = field(default_factory=dict)
    """What went wrong while a row, or the end of the run ("end"), was waited for."""
    state: str = ""


@dataclass
class Driver:
    """One course on one site."""

    site: Site
    course: Course

    def play(self) -> Played:
        """Start the run, play every row, and wait for the end."""
        groups = list(self.course.groups())
        self.site.set_pace(self.course.step_s)
        with self.site.without(self.course.hidden):
            self._planned = self._plan(groups[0], 1)
            run = self._launch()
            self.watch, self.played = RunWatch(run, 2), Played(self.course, run)
            for number, group in enumerate(groups):
                following = groups[number + 1] if number + 1 < len(groups) else ()
                self._play_group(group, following)
            self._finish()
        return self.played

    def _launch(self) -> Run:
        course = self.course
        disk = {"checkpoint": {"checkpoint_dir": str(self.site.small_disk)}}
        config = course_config(
            self.site.home,
            self.site.runs,
            steps=course.steps,
            pace_file=self.site.pace_file,
            **{**(disk if course.small_disk else {}), **course.config},
        )
        return Run(start(prepare(config, cluster="slurm"), faults=self._planned).root)

    def _plan(self, group: tuple[Row, ...], attempt: int) -> list[Fault]:
        faults = [(row.name, row.inside) for row in group]
        return plan_of(*(one.plan(name, attempt) for name, one in faults if one is not None))

    def _play_group(self, group: tuple[Row, ...], following: tuple[Row, ...]) -> None:
        """The rows of one attempt; those of the next one are planned as soon as nobody reads it."""
        for row in group:
            say(f"{self.course.name}: {row.name}")
            try:
                self._play(row, following)
            except (GaveUpError, OSError, AssertionError) as error:
                self.played.problems[row.name] = f"{type(error).__name__}: {error}"
                say(f"  {error}")

    def _play(self, row: Row, following: tuple[Row, ...]) -> None:
        with ExitStack() as mended:
            strike = self._strike(row, following, mended)
            self.played.strikes[row.name] = strike
            between = bool(following) and getattr(following[0].fault, "between", False)
            if row.expected.ends and not between:
                self._await_next(strike.attempt)

    def _strike(self, row: Row, following: tuple[Row, ...], mended: ExitStack) -> Strike:
        """Wait for the moment and strike, or wait until a rank did."""
        fault, watch = row.fault, self.watch
        if isinstance(fault, Outside) and fault.between:
            attempt = watch.newest
            watch.until(lambda: watch.ended(attempt), "the end of an attempt")
            self._add(following, attempt + 2)
            return self._act(row, fault, attempt + 1, mended)
        before = self._current()
        self._plan_ahead(row, following, before)
        if isinstance(fault, Outside) and fault.within is None:
            step = fault.step or 1
            watch.until(lambda: watch.stepped >= before and watch.step >= step, f"step {step}")
            return self._act(row, fault, watch.stepped, mended)
        watch.until(lambda: watch.fired(row.name) is not None, f"{row.name} to fire")
        fired = watch.fired(row.name)
        assert fired is not None
        if isinstance(fault, Outside):
            return self._act(row, fault, fired.attempt, mended)
        return Strike(fired.attempt, fired.t, fired.rank, fired.host)

    def _act(self, row: Row, fault: Outside, attempt: int, mended: ExitStack) -> Strike:
        scene = Scene(self.site, self.watch, attempt, fault.seconds, self.course.step_s)
        t = time.time()
        mended.enter_context(ACTS[fault.act](scene))
        if not row.expected.ends:
            t = time.time()  # what counts is that the same attempt goes on after it
        return Strike(attempt, t, scene.rank, scene.node)

    def _current(self) -> int:
        """The attempt that runs now, or the next one when the newest has ended."""
        newest = self.watch.newest
        return newest + 1 if newest == 0 or self.watch.ended(newest) else newest

    def _plan_ahead(self, row: Row, following: tuple[Row, ...], attempt: int) -> None:
        """Plan the next attempt's faults once every rank of this one has read its own.

        Earlier, they could strike this attempt; a row that waits for a fault plans after it.
        """
        watch = self.watch
        if self._planned_already(following):
            return
        watch.until(
            lambda: (
                len(watch.spoke.get(attempt, ())) == 2
                or watch.fired(row.name) is not None
                or watch.ended(attempt)
            ),
            f"the ranks of attempt {attempt}",
        )
        self._add(following, attempt + 1)

    def _planned_already(self, group: tuple[Row, ...]) -> bool:
        names = {one.id for one in self._planned}
        return all(row.inside is None or row.name in names for row in group)

    def _add(self, group: tuple[Row, ...], attempt: int) -> None:
        """Plan the faults of a group."""
        self._planned = [*self._planned, *self._plan(group, attempt)]
        write_faults(self.watch.run_dir, self._planned)

    def _await_next(self, attempt: int) -> None:
        """Wait until the attempt after this one has made a step or failed; resume where one has to.

        What is broken stays broken until then.
        """
        watch, next_status = self.watch, 0.0
        deadline = time.monotonic() + FOLLOW_S
        while watch.stepped <= attempt and not watch.ended(attempt + 1):
            watch.look()
            if time.monotonic() > deadline:
                self._requeue_by_hand()
                raise GaveUpError(f"nothing followed attempt {attempt} for {FOLLOW_S:g} s")
            if time.monotonic() >= next_status:
                next_status = time.monotonic() + STATUS_EVERY_S
                state = watch.run.status().state
                if state is RunState.FINISHED:
                    return
                if state.ended:
                    watch.run.resume()
            time.sleep(0.1)

    def _requeue_by_hand(self) -> None:
        """What a person would do, so that the rows after this one are played all the same."""
        scene = Scene(self.site, self.watch, 0, 0.0, 0.0)
        self.site.cluster.run("scontrol", "requeue", str(scene.job_id), check=False)

    def _finish(self) -> None:
        try:
            self.played.state = str(self.watch.run.wait(RUN_S).state)
        except TimeoutError as error:
            self.played.problems["end"] = str(error)
            self.watch.run.cancel()


def say(text: str) -> None:
    """Tell whoever waits what happens."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)
