"""``python -m launcher sweep``: starts a sweep, and tells of one."""

from __future__ import annotations

import argparse
import json
import os
from contextlib import ExitStack
from pathlib import Path

from submitrain.errors import UserError
from submitrain.launcher.cli.commands import log_to_stderr
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.sweeps.folder import HTML_NAME, SweepState, counts
from submitrain.launcher.sweeps.plan import plan_sweep
from submitrain.launcher.sweeps.render import report_parts, status_table
from submitrain.launcher.sweeps.request import Request, parse_grid, parse_nodes, parse_price
from submitrain.launcher.sweeps.sweep import Sweep
from submitrain.monitor.status import console

# ruff: noqa: T201 - printing is what a command line does


_ONLY_TO_START = (
    *("cluster", "nodes", "mode", "repeats", "grid", "steps", "warmup", "tokens", "price"),
    "at_once",
)


def main(options: argparse.Namespace) -> int:
    """Start a sweep, or do something with one; 0 when it went well.

    Raises:
        UserError: the input is wrong; nothing was started.
    """
    log_to_stderr()
    acts = {"status": _status, "report": _report, "cancel": _cancel, "resume": _resume}
    if options.config not in acts:
        return _begin(options)
    _check_act(options)
    sweep = Sweep.open(options.overrides[0], runs_dir=options.runs_dir)
    _check_page(options, written=options.config == "report" or _stays(sweep.cluster, options))
    return acts[options.config](sweep, options)


def _check_act(options: argparse.Namespace) -> None:
    """Refuse what only a start takes, and what would have no effect."""
    act = options.config
    given = [name for name in _ONLY_TO_START if getattr(options, name) is not None]
    if given:
        raise UserError(
            f"sweep {act}: expected no --{given[0].replace('_', '-')}, which a sweep is started "
            "with; start a new one to change it"
        )
    if len(options.overrides) != 1:
        raise UserError(
            f"sweep {act}: expected one SWEEP (its folder, name, beginning of a name, or latest), "
            f"got {' '.join(options.overrides) or 'none'}"
        )
    unused = [] if act == "resume" else ["wait", "detach"]
    unused += ["html"] if act in ("status", "cancel") else []
    for name in unused:
        if getattr(options, name):
            raise UserError(f"sweep {act}: expected no --{name}, which changes nothing")


def _check_page(options: argparse.Namespace, *, written: bool) -> None:
    """Refuse a page that will not be written, before anything is done for it."""
    if options.html is None or options.config in ("status", "cancel"):
        return
    if not written:
        raise UserError(
            "--html: expected --wait with it, since there is nothing to report before the end; or "
            "write `sweep report latest --html FILE` then"
        )
    folder = Path(options.html).absolute().parent
    if not os.access(folder, os.W_OK) or Path(options.html).is_dir():
        raise UserError(f"--html: expected a file that can be written, got {options.html}")


def _begin(options: argparse.Namespace) -> int:
    if options.runs_dir != "runs":
        raise UserError(
            f"--runs-dir: expected none for a start, got {options.runs_dir}; write "
            f"runs_dir={options.runs_dir}"
        )
    price, currency = (None, "") if options.price is None else parse_price(options.price)
    same = ("cluster", "mode", "repeats", "steps", "warmup", "tokens", "at_once")
    plan = plan_sweep(
        Request(
            options.config,
            overrides=tuple(options.overrides),
            nodes=None if options.nodes is None else parse_nodes(options.nodes),
            grid=parse_grid(options.grid or ()),
            price=price,
            currency=currency,
            **{name: getattr(options, name) for name in same},
        )
    )
    cluster = plan.first.cluster
    stay = _stays(cluster.name, options)
    _check_page(options, written=stay)
    with ExitStack() as stack:
        screen = Screen(stack)
        screen.say(
            f"sweep of {plan.base.name} on {cluster.name} ({cluster.reason}): "
            f"{len(plan.points)} runs, {plan.repeats} of each configuration"
        )
        if plan.mode is not None:
            shown = {p.nodes: plan.global_batches[p.id] for p in plan.points}
            sizes = ", ".join(f"{size} on {nodes}" for nodes, size in sorted(shown.items()))
            screen.say(f"  {plan.mode}: sequences of a step: {sizes} node(s)")
        for line in plan.found.notes:
            screen.say(f"note: {line}")
        for line in plan.warnings:
            screen.say(f"warning: {line}")
        sweep = Sweep.begin(plan, screen, stay=stay)
        if stay:
            sweep.wait(screen=screen)
    return _tell(sweep, options, stayed=stay)


def _stays(cluster: str, options: argparse.Namespace) -> bool:
    """Local sweeps attach by default, Slurm's do not: as runs do."""
    return bool(options.wait or (cluster == "local" and not options.detach))


def _tell(sweep: Sweep, options: argparse.Namespace, *, stayed: bool) -> int:
    """After a start: the report when we stayed, else how to follow."""
    if stayed:
        return _report(sweep, options)
    state, points = sweep.status()
    if options.json:
        print(json.dumps({"sweep": sweep.name, "folder": str(sweep.folder), "state": str(state)}))
        return 0
    print(f"{sweep.name}: {counts(points)}")
    print(f"  folder   {sweep.folder}")
    for act in ("status", "report", "cancel"):
        print(f"  {act:8} python -m launcher sweep {act} {sweep.shown}")
    return 0


def _status(sweep: Sweep, options: argparse.Namespace) -> int:
    state, points = sweep.status()
    if options.json:
        rows = [
            {
                **one.point.as_json(),
                "state": one.word,
                "tries": len(one.folders),
                "status": one.status.as_json() if one.status else None,
            }
            for one in points
        ]
        value = {"sweep": sweep.name, "folder": str(sweep.folder), "state": str(state)}
        print(json.dumps({**value, "points": rows}, indent=2))
        return 0
    console().print(status_table(points).on_terminal(), markup=False)
    print(f"\n{sweep.name}: {state}, {counts(points)}")
    if state in (SweepState.INCOMPLETE, SweepState.CANCELLED):
        print(f"  resume it with: python -m launcher sweep resume {sweep.shown}")
    return 0


def _report(sweep: Sweep, options: argparse.Namespace) -> int:
    """Show what was measured; 0 when all points have finished or may still do so."""
    report = sweep.write_report(Path(options.html) if options.html else None)
    if options.json:
        print(json.dumps(report.as_json(), indent=2))
    else:
        out = console()
        for part in report_parts(report):
            out.print(part, markup=False, highlight=False)
        _, points = sweep.status()
        print(f"\n{sweep.name}: {report.state}, {counts(points)}")
        print(f"report: {options.html or sweep.folder / HTML_NAME}")
        if report.state in (SweepState.INCOMPLETE, SweepState.CANCELLED):
            print(f"resume it with: python -m launcher sweep resume {sweep.shown}")
    return 1 if report.state in (SweepState.INCOMPLETE, SweepState.CANCELLED) else 0


def _cancel(sweep: Sweep, options: argparse.Namespace) -> int:
    stopped = sweep.cancel()
    if options.json:
        print(json.dumps({"sweep": sweep.name, "cancelled": stopped}))
    else:
        print(f"{sweep.name}: nothing more starts; asked to stop: {', '.join(stopped) or 'none'}")
    return 0


def _resume(sweep: Sweep, options: argparse.Namespace) -> int:
    stay = _stays(sweep.cluster, options)
    with ExitStack() as stack:
        screen = Screen(stack)
        sweep.resume(screen, stay=stay)
        if stay:
            sweep.wait(screen=screen)
    return _tell(sweep, options, stayed=stay)
