"""``python -m monitor status``, and what ``python -m launcher status`` and ``list`` print."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from monitor.efficiency import read_efficiency
from monitor.goodput_read import read_goodput
from monitor.runs import find_run, list_runs
from monitor.sights import see
from monitor.status import RunState, RunStatus
from monitor.status_text import efficiency_rows, runs_table, status_rows, time_rows

_PIPE_WIDTH = 250


def main(options: argparse.Namespace) -> int:
    """Show one run or all."""
    runs_dir = Path(options.runs_dir).expanduser()
    if options.all:
        folders = [folder.resolve() for folder in reversed(list_runs(runs_dir))]
        show_runs(see_all(folders), as_json=options.json, runs_dir=runs_dir)
    else:
        [found] = see_all([find_run(options.run, runs_dir)])
        show_run(found, as_json=options.json)
    return 0


def see_all(folders: Sequence[Path]) -> list[RunStatus]:
    """How these runs are doing; one query of the scheduler. Of many, a bad one is named aside."""

    def trouble(folder: Path, error: Exception) -> None:
        print(f"warning: {folder.name} cannot be read: {error}", file=sys.stderr)

    return [sight.status for sight in see(folders, trouble if len(folders) > 1 else None)]


def show_runs(found: Sequence[RunStatus], *, as_json: bool, runs_dir: Path) -> None:
    """One line for every run."""
    if as_json:
        print(json.dumps([status.as_json() for status in found], indent=2))
    elif not found:
        print(f"no runs in {runs_dir.absolute()}")
    else:
        console().print(runs_table(found))


def show_run(found: RunStatus, *, as_json: bool) -> None:
    """Everything about one run; asks sacct what it used once it has ended."""
    pending = found.state is RunState.QUEUED
    goodput = read_goodput(Path(found.folder), ended=found.state.ended, pending=pending)
    efficiency = None
    if found.state.ended and found.cluster == "slurm" and found.job_ids:
        efficiency = read_efficiency(found.job_ids)
    if as_json:
        values = {**found.as_json(), "goodput": goodput.as_json()}
        values["efficiency"] = efficiency.as_json() if efficiency else None
        print(json.dumps(values, indent=2))
        return
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    rows = [*status_rows(found), *efficiency_rows(efficiency)]
    for label, text in [*rows, *time_rows(goodput, whole=found.state.ended)]:
        table.add_row(label, Text(text))
    console().print(table, markup=False)


def console() -> Console:
    """Standard output; where it is no terminal nothing is folded at 80 columns."""
    return Console(width=None if sys.stdout.isatty() else _PIPE_WIDTH)
