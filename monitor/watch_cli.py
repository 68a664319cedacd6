"""``python -m monitor watch``: prints what the watcher reports; exits 1 if the run failed."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from monitor.alerts.channels.chat import load_apprise
from monitor.alerts.channels.errors import DeliveryError
from monitor.alerts.settings import Settings, read_settings
from monitor.alerts.text import moment
from monitor.look import Looker, Report
from monitor.runs import find_run, list_runs
from monitor.status import RunState
from monitor.watch import Watcher
from train.errors import UserError


def main(options: argparse.Namespace) -> int:
    """Watch one run until its end, or all for ever."""
    looker = Looker(
        config=_file(options.config),
        state_dir=Path(options.state_dir).absolute() if options.state_dir else None,
        at_once=options.once,
    )
    runs_dir = Path(options.runs_dir).expanduser()
    folder = None if options.all else find_run(options.run, runs_dir)
    settings = _settings(looker, folder)
    interval_s = options.interval or settings.limits.interval_s
    if interval_s <= 0:
        raise UserError(f"--interval: expected seconds > 0, got {interval_s:g}")
    show = Printer(json=options.json, steps=folder is not None)
    watcher = Watcher(
        find=lambda: list_runs(runs_dir) if folder is None else [folder],
        looker=looker,
        show=show,
        complain=_complain,
    )
    signal.signal(signal.SIGTERM, _leave)
    if options.once:
        watcher.once()
        return 0
    watcher.run(interval_s=interval_s, until_closed=folder is not None)
    return 1 if show.states.get(folder.name if folder else "") == RunState.FAILED else 0


class Printer:
    """Prints a line about a run when there is something new."""

    def __init__(self, *, json: bool, steps: bool) -> None:
        self._json, self._steps = json, steps
        self._shown: dict[str, tuple[Any, ...]] = {}
        self.states: dict[str, str] = {}

    def __call__(self, report: Report) -> None:
        """Show one look."""
        line = report.line
        self.states[line["run_id"]] = line["state"]
        if self._json:
            print(json.dumps(line), flush=True)
            return
        alerts = tuple(_in_short(one) for one in line.get("alerts", ()))
        new = (line["state"], alerts, line.get("step") if self._steps else None)
        if self._shown.get(line["run_id"]) != new:
            self._shown[line["run_id"]] = new
            print(_text(line, alerts), flush=True)


def _text(line: dict[str, Any], alerts: Sequence[str]) -> str:
    step = f" step {line['step']}" if line.get("step") else ""
    total = f"/{line['total_steps']}" if step and line.get("total_steps") else ""
    loss = line.get("loss")
    shown = f" loss {loss:.4f}" if isinstance(loss, float) else f" loss {loss}" if loss else ""
    rate = line.get("tokens_per_s")
    speed = f" {rate:,.0f} tokens/s" if rate else ""
    head = f"{moment(line['t'])}  {line['run_id']}  {line['state']}{step}{total}{shown}{speed}"
    return "\n".join([head, *(f"    {alert}" for alert in alerts)])


def _in_short(alert: dict[str, Any]) -> str:
    muted = f" (follows from {alert['muted_by']})" if alert.get("muted_by") else ""
    return f"{alert['severity']} {alert['rule']}{muted}: {alert['text']}"


def _settings(looker: Looker, folder: Path | None) -> Settings:
    """The settings to begin with; what would not work is said now and not at 3 a.m.

    Raises:
        UserError: the settings are wrong, or a package is missing.
    """
    if folder is not None:
        settings = looker.settings_of(folder)
    else:
        settings = read_settings(looker.config or Path())
    if "apprise" in settings.channels:
        try:
            load_apprise()
        except DeliveryError as error:
            raise UserError(str(error)) from error
    if not settings.channels and (folder is not None or looker.config is not None):
        _complain("no channel is set up (section alerts): alerts go to alerts.jsonl only")
    return settings


def _file(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if not path.is_file():
        raise UserError(f"--config: expected a YAML file, got {name}, which is none")
    return path.absolute()


def _complain(text: str) -> None:
    print(f"warning: {text}", file=sys.stderr, flush=True)


def _leave(number: int, frame: object) -> NoReturn:
    """TERM ends it at once: everything worth keeping is on disk."""
    sys.exit(128 + number)
