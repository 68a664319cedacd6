"""``python -m launcher drill``: holds a drill and shows what came of it."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack

from launcher.commands import console, log_to_stderr
from launcher.drill.plan import DrillPlan, Request, plan_drill
from launcher.drill.report import HTML_NAME, Report
from launcher.drill.scenarios import CATALOGUE, Place
from launcher.drill.session import hold
from launcher.drill.text import catalogue_table, report_parts
from launcher.screen import Screen, make_screen


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
