"""``python -m monitor serve``: polls all runs, and serves what it saw to Prometheus."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import signal
import sys
import time
from pathlib import Path

from submitrain.config.types import parse_duration_s
from submitrain.errors import UserError
from submitrain.monitor.watch.fleet import Fleet
from submitrain.run_folder import find_run, list_runs

SHORTEST_SLEEP_S = 0.1


def main(options: argparse.Namespace) -> int:
    """Serve until TERM or Ctrl-C."""
    try:
        from submitrain.monitor.serve.service import Service
    except ImportError as error:
        raise UserError(
            "serve: the package prometheus-client is missing; pip install 'submitrain[prometheus]'"
        ) from error
    if options.interval <= 0:
        raise UserError(f"--interval: expected seconds > 0, got {options.interval:g}")
    service = Service(_fleet(options), interval_s=options.interval)
    url = service.listen(options.bind, options.port)
    # TERM is how a service is told to end.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
    print(f"serving {url}/metrics", flush=True)
    said = ""
    while True:
        began = time.monotonic()
        problem = service.poll()
        if problem and problem != said:
            print(f"warning: {problem}", file=sys.stderr, flush=True)
        said = problem
        time.sleep(max(SHORTEST_SLEEP_S, began + options.interval - time.monotonic()))


def _fleet(options: argparse.Namespace) -> Fleet:
    """The runs that are polled.

    Raises:
        UserError: a number that makes no sense, or no such run.
    """
    if options.run and options.all:
        raise UserError(
            "serve: expected a run, or --all for every run of the runs folder, not both"
        )
    if options.max_runs < 1:
        raise UserError(f"--max-runs: expected a number >= 1, got {options.max_runs}")
    try:
        keep_ended_s = parse_duration_s(options.keep_ended)
    except ValueError as error:
        raise UserError(f"--keep-ended: {error}") from error
    runs_dir = Path(options.runs_dir).expanduser()
    folder = find_run(options.run, runs_dir) if options.run else None
    return Fleet(
        find=lambda: list_runs(runs_dir) if folder is None else [folder],
        keep_ended_s=float(keep_ended_s) if folder is None else None,
        max_runs=options.max_runs,
        state_dir=Path(options.state_dir).absolute() if options.state_dir else None,
    )
