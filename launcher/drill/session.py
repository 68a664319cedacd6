"""Holds a whole drill, run by run, and keeps its report up to date.

``python -m launcher drill``: holds a drill and shows what came of it.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import time
from contextlib import ExitStack, suppress
from pathlib import Path

from submitrain.errors import SubmitrainError, UserError
from submitrain.events import Kind, read_events
from submitrain.launcher.cli.commands import log_to_stderr
from submitrain.launcher.cli.screen import Screen, make_screen
from submitrain.launcher.drill.compare import Comparison
from submitrain.launcher.drill.conduct import Conducted, abort, conduct
from submitrain.launcher.drill.judge import (
    CONTROL,
    INTERRUPTED,
    UNDISTURBED,
    Outcome,
    judged,
    read_outcome,
)
from submitrain.launcher.drill.report import (
    HTML_NAME,
    Report,
    catalogue_table,
    report_parts,
    write_report,
)
from submitrain.launcher.drill.scenarios import CATALOGUE, REQUEUE_WAIT_S, Expected, Place, Scenario
from submitrain.launcher.drill.settings import (
    DrillPlan,
    Measured,
    Request,
    pace_of,
    paced,
    plan_drill,
    time_limit_overrides,
)
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


def hold(plan: DrillPlan, screen: Screen) -> Report:
    """Run after run; Ctrl-C cancels the current one and ends the drill with what there is.

    Raises:
        SubmitrainError: not even the first run could be started; nothing stays behind.
    """
    report = Report(plan, _make_folder(plan.runs_dir), time.time())
    session = _Session(plan, report, screen)
    try:
        session.all_runs()
    except KeyboardInterrupt:
        report.interrupted = True
        screen.say("interrupted")
        _abort_others(report, screen)
    except SubmitrainError as error:
        if not report.outcomes:
            shutil.rmtree(report.folder, ignore_errors=True)
            raise
        report.problem = str(error)
        screen.say(f"error: {error}")
    report.ended_at = time.time()
    session.judge()
    write_report(report)
    return report


class _Session:
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
        pace_s = self._pace_s(scenario)
        overrides = [*self._plan.overrides, f"name={name}", f"runs_dir={self._report.folder}"]
        faults: tuple[Fault, ...] = ()
        if scenario is not None:
            overrides += self._time_limit(scenario, pace_s)
            faults = scenario.faults(self._plan.place, self._plan.steps)
            faults += paced(scenario, pace_s, self._plan.steps)
        cluster = self._plan.place.cluster
        prepared = prepare(self._plan.request.config, overrides=overrides, cluster=cluster)
        run = Run(start(prepared, faults=faults).root)
        conducted, interrupt = self._conduct(run, scenario)
        outcome = read_outcome(
            scenario,
            run.folder,
            name=name,
            state=INTERRUPTED if interrupt else str(conducted.status.state),
            why="; ".join(text for text in (conducted.problem, conducted.status.why) if text),
            duration_s=conducted.duration_s,
            by_hand=conducted.by_hand,
            reference=reference,
        )
        outcome = judged(outcome, scenario, control=self._control)
        self._report.outcomes.append(outcome)
        self._screen.say(f"  {'ok' if outcome.ok else 'NOT OK'}: {outcome.verdict}")
        write_report(self._report)
        if interrupt is not None:
            raise interrupt
        return outcome

    def _conduct(
        self, run: Run, scenario: Scenario | None
    ) -> tuple[Conducted, KeyboardInterrupt | None]:
        began = time.monotonic()
        try:
            return conduct(
                run,
                scenario,
                steps=self._plan.steps,
                patience_s=self._patience_s(),
                expected_s=None if scenario is None else self._expected_s(scenario),
                screen=self._screen,
            ), None
        except KeyboardInterrupt as interrupt:
            status = run.status()
            with suppress(KeyboardInterrupt):
                status = abort(run, self._screen)
            return Conducted(status, time.monotonic() - began), interrupt

    def _pace_s(self, scenario: Scenario | None) -> float:
        if scenario is None or self._measured is None:
            return 0.0
        return pace_of(scenario, self._measured, self._plan.steps)

    def _time_limit(self, scenario: Scenario, pace_s: float) -> list[str]:
        if not scenario.short_time_limit or self._measured is None:
            return []
        return time_limit_overrides(
            self._measured,
            configured_s=self._plan.place.config.slurm.time,
            pace_s=pace_s,
            steps=self._plan.steps,
        )

    def _patience_s(self) -> float:
        if self._measured is None:
            return FIRST_PATIENCE_S
        return max(LEAST_PATIENCE_S, PATIENCE * self._measured.total_s)

    def _expected_s(self, scenario: Scenario) -> float:
        assert self._measured is not None
        pace_s = pace_of(scenario, self._measured, self._plan.steps) * self._plan.steps.total
        requeues = self._plan.place.cluster == "slurm" and (
            scenario.short_time_limit or "requeued" in scenario.causes
        )
        wait_s = REQUEUE_WAIT_S if requeues else 0.0
        again_s = self._measured.started_s
        return self._measured.total_s + again_s + pace_s + wait_s + scenario.extra_s


def _abort_others(report: Report, screen: Screen) -> None:
    """Cancel what Ctrl-C caught between its submission and its being followed."""
    known = {outcome.folder for outcome in report.outcomes}
    for folder in list_runs(report.folder):
        if str(folder) not in known:
            abort(Run(folder), screen)


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
        return _new_folder(runs_dir)
    except OSError as error:
        raise UserError(
            f"runs_dir: expected a folder that can be written, got {runs_dir}: {error.strerror}; "
            "set runs_dir=/some/shared/folder"
        ) from error


def _new_folder(runs_dir: Path) -> Path:
    while True:
        folder = runs_dir / time.strftime("drill-%Y%m%dT%H%M%S", time.gmtime())
        try:
            folder.mkdir()
        except FileExistsError:
            time.sleep(0.2)  # another drill began in this second
            continue
        return folder


def _free_checkpoints(folder: Path) -> None:
    """Delete the checkpoints of a run that needs no further look: they may be large."""
    for path in RunDir(folder).checkpoints.resolve().glob("step-*"):
        shutil.rmtree(path, ignore_errors=True)


# ruff: noqa: T201 - printing is what a command line does


def main(options: argparse.Namespace) -> int:
    """Hold a drill; 0 when every run ended as it should, 1 otherwise.

    Raises:
        UserError: the input is wrong; nothing was started.
    """
    log_to_stderr()
    plan = plan_drill(
        Request(
            config=options.config,
            overrides=tuple(options.overrides),
            cluster=options.cluster,
            steps=options.steps,
            shrink=options.shrink,
            faults=options.faults,
        )
    )
    if options.list:
        return _show_list(plan.place, as_json=options.json)
    with ExitStack() as stack:
        screen = make_screen(stack)
        _introduce(plan, screen)
        report = hold(plan, screen)
    _show(report, as_json=options.json)
    return 0 if report.ok else 1


def _show_list(place: Place, *, as_json: bool) -> int:
    if as_json:
        rows = [
            {
                "id": one.id,
                "what": one.what,
                "needs": one.needs,
                "default": one.default(place),
                "why_not": one.why_not(place),
            }
            for one in CATALOGUE
        ]
        print(json.dumps(rows, indent=1))
    else:
        console().print(catalogue_table(CATALOGUE, place))
    return 0


def _introduce(plan: DrillPlan, screen: Screen) -> None:
    config = plan.place.config
    screen.say(
        f"drill of {plan.request.config} on {plan.place.cluster} ({plan.cluster_reason}): "
        f"{config.world_size} rank{'s' if config.world_size > 1 else ''}, "
        f"{plan.steps.total} steps; faults: {', '.join(one.id for one in plan.scenarios)}"
    )
    for warning in plan.settings.warnings:
        screen.say(f"warning: {warning}")


def _show(report: Report, *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(report.as_json(), indent=1))
        return
    out = console()
    for part in report_parts(report):
        out.print(part, markup=False, highlight=False)
    out.print(f"report: {report.folder / HTML_NAME}", markup=False, highlight=False, soft_wrap=True)
