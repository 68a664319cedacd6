"""``python -m launcher drill``: holds a drill and shows what came of it."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import sys
import time
from contextlib import ExitStack

from rich.console import Console
from rich.status import Status

from launcher.commands import console, log_to_stderr
from launcher.drill.plan import DrillPlan, Request, plan_drill
from launcher.drill.report import HTML_NAME, Report
from launcher.drill.scenarios import CATALOGUE, Place
from launcher.drill.session import hold
from launcher.drill.text import catalogue_table, report_parts

PLAIN_EVERY_S = 15.0


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
        screen = _screen(stack)
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


def _introduce(plan: DrillPlan, screen: TerminalScreen | PlainScreen) -> None:
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


class TerminalScreen:
    """A line that is replaced, below lines that stay."""

    def __init__(self, terminal: Console, status: Status) -> None:
        self._terminal, self._status = terminal, status

    def say(self, line: str) -> None:
        """Print above the moving line."""
        self._terminal.print(line, markup=False, highlight=False)

    def doing(self, text: str) -> None:
        """Replace the moving line."""
        self._status.update(text)


class PlainScreen:
    """For logs and pipes: lines that stay, and now and then what goes on."""

    def __init__(self) -> None:
        self._shown_at = time.monotonic()

    def say(self, line: str) -> None:
        """Print a line."""
        print(line, file=sys.stderr, flush=True)
        self._shown_at = time.monotonic()

    def doing(self, text: str) -> None:
        """Print what goes on, every ``PLAIN_EVERY_S`` seconds."""
        if time.monotonic() - self._shown_at >= PLAIN_EVERY_S:
            self.say(f"  {text}")


def _screen(stack: ExitStack) -> TerminalScreen | PlainScreen:
    """Progress goes to standard error: standard output holds the report alone."""
    terminal = Console(stderr=True)
    if not terminal.is_terminal:
        return PlainScreen()
    return TerminalScreen(terminal, stack.enter_context(terminal.status("starts")))
