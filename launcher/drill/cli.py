"""``python -m launcher drill``: holds a drill, run by run, and shows its report."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from submitrain.attempts import Cause
from submitrain.errors import SubmitrainError, UserError
from submitrain.events import Kind, read_events
from submitrain.launcher.cli.commands import log_to_stderr
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.drill.compare import Comparison
from submitrain.launcher.drill.follow import Followed, Follower, abort
from submitrain.launcher.drill.plan import (
    DrillPlan,
    Measured,
    pace_of,
    paced,
    plan_drill,
    time_limit_overrides,
)
from submitrain.launcher.drill.report import HTML_NAME, Report, catalogue_table, report_parts
from submitrain.launcher.drill.result import (
    CONTROL,
    INTERRUPTED,
    UNDISTURBED,
    Outcome,
    judged,
    read_outcome,
)
from submitrain.launcher.drill.scenarios import CATALOGUE, REQUEUE_WAIT_S, Expected, Scenario
from submitrain.launcher.plan.prepare import prepare
from submitrain.launcher.run import Run
from submitrain.launcher.submit.start import start
from submitrain.monitor.status import console
from submitrain.run_folder import RunDir, list_runs
from submitrain.train.faults import Fault

FIRST_PATIENCE_S = 3600.0
"""Seconds without a new step before the undisturbed run is given up: a first start may download."""
LEAST_PATIENCE_S = 300.0
PATIENCE = 10.0
"""Times the undisturbed run's duration, after which a disturbed one without a step is given up."""


def main(options: argparse.Namespace) -> int:
    """Hold a drill; 0 when every run ended as it should, 1 otherwise.

    Raises:
        UserError: the input is wrong; nothing was started.
    """
    log_to_stderr()
    asked = ("overrides", "cluster", "steps", "shrink", "faults")
    plan = plan_drill(options.config, **{name: getattr(options, name) for name in asked})
    if options.list:
        _show_list(plan, as_json=options.json)
        return 0
    with ExitStack() as stack:
        screen = Screen(stack)
        world_size = plan.place.config.world_size
        screen.say(
            f"drill of {plan.source} on {plan.place.cluster} ({plan.cluster_reason}): "
            f"{world_size} rank{'s' if world_size > 1 else ''}, "
            f"{plan.steps.total} steps; faults: {', '.join(one.id for one in plan.scenarios)}"
        )
        for warning in plan.warnings:
            screen.say(f"warning: {warning}")
        report = hold(plan, screen)
    if options.json:
        print(json.dumps(report.as_json(), indent=1))
    else:
        page = f"report: {report.folder / HTML_NAME}"
        out = console()
        for part in report_parts(report):
            out.print(part, markup=False, highlight=False)
        out.print(page, markup=False, highlight=False, soft_wrap=True)
    return 0 if report.ok else 1


def _show_list(plan: DrillPlan, *, as_json: bool) -> None:
    if not as_json:
        console().print(catalogue_table(CATALOGUE, plan.place).on_terminal())
        return
    place = plan.place
    rows = [
        {
            **{name: getattr(one, name) for name in ("id", "what", "needs")},
            "default": one.default(place),
            "why_not": one.why_not(place),
        }
        for one in CATALOGUE
    ]
    print(json.dumps(rows, indent=1))


def hold(plan: DrillPlan, screen: Screen) -> Report:
    """Run after run; Ctrl-C cancels the current one and ends the drill with what there is.

    Raises:
        SubmitrainError: not even the first run could be started; nothing stays behind.
    """
    report = Report(plan, _make_folder(plan.runs_dir), time.time())
    drill = _Drill(plan, report, screen)
    try:
        drill.all_runs()
    except KeyboardInterrupt:
        report.interrupted = True
        screen.say("interrupted")
        # Cancel what Ctrl-C caught between its submission and its being followed, too.
        known = {outcome.folder for outcome in report.outcomes}
        for folder in list_runs(report.folder):
            if str(folder) not in known:
                abort(Run(folder), screen)
    except SubmitrainError as error:
        if not report.outcomes:
            shutil.rmtree(report.folder, ignore_errors=True)
            raise
        report.problem = str(error)
        screen.say(f"error: {error}")
    report.ended_at = time.time()
    drill.judge()
    report.write()
    return report


class _Drill:
    def __init__(self, plan: DrillPlan, report: Report, screen: Screen) -> None:
        self._plan, self._report, self._screen = plan, report, screen
        self._scenario_of = {one.id: one for one in plan.scenarios}
        self._control: Comparison | None = None
        self._measured: Measured | None = None

    def all_runs(self) -> None:
        """The undisturbed run, every scenario, and a control where a curve differs."""
        total = 1 + len(self._plan.scenarios)
        self._screen.say(f"1/{total} {UNDISTURBED}")
        first = self._run(UNDISTURBED, None)
        if first.state != "finished":
            return
        self._measured = measure(first)
        for number, scenario in enumerate(self._plan.scenarios, start=2):
            expected_s = self._expected_s(scenario)
            self._screen.say(
                f"{number}/{total} {scenario.id}: {scenario.what} (about {expected_s:.0f} s)"
            )
            self._run(scenario.id, scenario)
        if any(self._differs(outcome) for outcome in self._report.outcomes):
            self._screen.say(f"{CONTROL}: undisturbed again, since a curve differs")
            self._control = self._run(CONTROL, None).comparison

    def judge(self) -> None:
        """Judge all outcomes, now that the control is known, and free what is not needed."""
        outcomes = self._report.outcomes
        for index, outcome in enumerate(outcomes):
            scenario = self._scenario_of.get(outcome.id)
            outcomes[index] = judged(outcome, scenario, control=self._control)
        for outcome in outcomes:
            if outcome.ok:
                _free_checkpoints(Path(outcome.folder))

    def _differs(self, outcome: Outcome) -> bool:
        """Whether a curve is another one that should be the same."""
        scenario = self._scenario_of.get(outcome.id)
        if scenario is None or scenario.expected is not Expected.SAME:
            return False
        comparison = outcome.comparison
        return outcome.state == "finished" and comparison is not None and not comparison.alike

    def _run(self, name: str, scenario: Scenario | None) -> Outcome:
        reference = Path(self._report.outcomes[0].folder) if self._report.outcomes else None
        overrides = [*self._plan.overrides, f"name={name}", f"runs_dir={self._report.folder}"]
        faults: tuple[Fault, ...] = ()
        if scenario is not None and self._measured is not None:
            steps = self._plan.steps
            pace_s = pace_of(scenario, self._measured, steps)
            if scenario.short_time_limit:
                overrides += time_limit_overrides(
                    self._measured,
                    configured_s=self._plan.place.config.slurm.time,
                    pace_s=pace_s,
                    steps=steps,
                )
            faults = scenario.faults(self._plan.place, steps) + paced(scenario, pace_s, steps)
        cluster = self._plan.place.cluster
        prepared = prepare(self._plan.source, overrides=overrides, cluster=cluster)
        run = Run(start(prepared, faults=faults).root)
        followed, interrupt = self._follow(run, scenario)
        outcome = read_outcome(
            scenario,
            run.folder,
            name=name,
            state=INTERRUPTED if interrupt else str(followed.status.state),
            why="; ".join(text for text in (followed.problem, followed.status.why) if text),
            duration_s=followed.duration_s,
            external=followed.external,
            reference=reference,
        )
        outcome = judged(outcome, scenario, control=self._control)
        self._report.outcomes.append(outcome)
        self._screen.say(f"  {'ok' if outcome.ok else 'NOT OK'}: {outcome.result}")
        self._report.write()
        if interrupt is not None:
            raise interrupt
        return outcome

    def _follow(
        self, run: Run, scenario: Scenario | None
    ) -> tuple[Followed, KeyboardInterrupt | None]:
        began, patience_s = time.monotonic(), FIRST_PATIENCE_S
        if self._measured is not None:
            patience_s = max(LEAST_PATIENCE_S, PATIENCE * self._measured.total_s)
        try:
            expected_s = None if scenario is None else self._expected_s(scenario)
            steps, screen = self._plan.steps, self._screen
            follower = Follower(run, scenario, steps, patience_s, expected_s, screen)
            return follower.to_the_end(), None
        except KeyboardInterrupt as interrupt:
            status = run.status()
            with suppress(KeyboardInterrupt):
                status = abort(run, self._screen)
            return Followed(status, time.monotonic() - began), interrupt

    def _expected_s(self, scenario: Scenario) -> float:
        assert self._measured is not None
        pace_s = pace_of(scenario, self._measured, self._plan.steps) * self._plan.steps.total
        requeues = self._plan.place.cluster == "slurm" and (
            scenario.short_time_limit or Cause.REQUEUED in scenario.causes
        )
        wait_s = REQUEUE_WAIT_S if requeues else 0.0
        again_s = self._measured.started_s
        return self._measured.total_s + again_s + pace_s + wait_s + scenario.extra_s


def measure(outcome: Outcome) -> Measured:
    """What a finished undisturbed run took."""
    run_dir = RunDir(Path(outcome.folder))
    steps = list(read_events(run_dir.events(0), kinds=frozenset({Kind.STEP})))
    first_t, last_t = steps[0]["t"], steps[-1]["t"]
    return Measured(
        total_s=outcome.duration_s,
        started_s=first_t - (outcome.attempts[0].started_at or first_t),
        steps_s=last_t - first_t,
        step_s=statistics.median(float(event["step_s"]) for event in steps),
    )


def _make_folder(runs_dir: Path) -> Path:
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        while True:
            folder = runs_dir / time.strftime("drill-%Y%m%dT%H%M%S", time.gmtime())
            with suppress(FileExistsError):
                folder.mkdir()
                return folder
            time.sleep(0.2)  # another drill began in this second
    except OSError as error:
        raise UserError(
            f"runs_dir: expected a folder that can be written, got {runs_dir}: {error.strerror}; "
            "set runs_dir=/some/shared/folder"
        ) from error


def _free_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that needs no further look: they may be large."""
    for path in RunDir(folder).checkpoints.resolve().glob("step-*"):
        shutil.rmtree(path, ignore_errors=True)
