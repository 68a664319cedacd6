"""Watches one run or all of a folder until told to stop: looks, sends, and outlives every hiccup.

What must not be forgotten is on disk after every look; this process holds nothing.

``python -m monitor watch``: prints what the watcher reports; exits 1 if the run failed.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from submitrain.errors import UserError
from submitrain.monitor.alerts.channels import DeliveryError, load_apprise
from submitrain.monitor.alerts.delivery import Errand, Sender, pings_of
from submitrain.monitor.alerts.routing import moment
from submitrain.monitor.alerts.settings import Settings, read_settings
from submitrain.monitor.watch.poll import Looker, Report
from submitrain.run_folder import RunDir, find_run, list_runs
from submitrain.status import RunState, Sight, see

LAST_SENDING_S = 120.0
"""How long ``--once`` waits for its messages to be sent."""
LAST_LOOKS_S = 1.0
"""Seconds between looks at a run that has ended, until its last message is sent."""
SHORTEST_NAP_S = 0.05


@dataclass
class Watcher:
    """``find`` lists run folders; ``show`` gets every report, ``complain`` what went wrong."""

    find: Callable[[], Sequence[Path]]
    looker: Looker
    show: Callable[[Report], None]
    complain: Callable[[str], None]
    sender: Sender = field(default_factory=Sender)
    clock: Callable[[], float] = time.time
    nap: Callable[[float], None] = time.sleep
    """Waits so many seconds, or until it is worth another look."""
    leaves: Callable[[Sequence[Report]], bool] = lambda reports: False
    """Whether to go after a look, although not all is told."""

    def __post_init__(self) -> None:
        self._closed: dict[Path, tuple[float, ...]] = {}
        self._complained: dict[str, str] = {}

    def tick(self) -> list[Report]:
        """Look at every run that is not closed, then send what is due."""
        folders = [folder for folder in self.find() if self._open(folder)]
        sights = self._see(folders)
        reports = [report for sight in sights if (report := self._look(sight)) is not None]
        for report in reports:
            self.show(report)
        complete = len(reports) == len(folders)
        self._send(reports, ping=complete)
        return reports

    def once(self) -> list[Report]:
        """One look, and everything that follows from it."""
        reports = self.tick()
        if not self.sender.wait(LAST_SENDING_S):
            self.complain("messages are still being sent; the next look goes on with them")
        return reports

    def run(self, *, interval_s: float, until_closed: bool) -> None:
        """Look every ``interval_s`` seconds; ``until_closed``: until all runs have ended."""
        while True:
            began = time.monotonic()
            reports = self.tick()
            if until_closed and all(report.closed for report in reports) and reports:
                self.sender.wait(LAST_SENDING_S)
                return
            if self.leaves(reports):
                self.sender.wait(LAST_SENDING_S)
                return
            nap_s = began + interval_s - time.monotonic()
            waits = [report.due_in_s for report in reports if report.due_in_s is not None]
            if until_closed and all(report.ended for report in reports):
                waits.append(LAST_LOOKS_S)
            # What has been grouped for long enough goes out then, however long the interval is.
            self.nap(max(SHORTEST_NAP_S, min([nap_s, *(one + SHORTEST_NAP_S for one in waits)])))

    def _see(self, folders: Sequence[Path]) -> list[Sight]:
        try:
            return list(see(folders, self._trouble))
        except OSError as error:
            self._complain_once("", f"run folders cannot be read: {error}; trying again")
            return []

    def _trouble(self, folder: Path, error: Exception) -> None:
        self._complain_once(folder.name, f"{folder.name}: {error}")

    def _look(self, sight: Sight) -> Report | None:
        """Look at one run; its trouble is said once, and does not keep the others waiting."""
        folder = sight.evidence.folder
        try:
            report = self.looker.look(sight, self.clock())
        except (UserError, OSError) as error:
            self._complain_once(folder.name, f"{folder.name}: {error}")
            return None
        self._complained.pop(folder.name, None)
        if report.closed:
            self._closed[folder] = stamps(folder)
        return report

    def _open(self, folder: Path) -> bool:
        """Whether a run has to be looked at: not closed, or touched since it was."""
        if folder not in self._closed:
            return True
        if stamps(folder) == self._closed[folder]:
            return False
        del self._closed[folder]
        return True

    def _send(self, reports: Sequence[Report], *, ping: bool) -> None:
        outboxes = [
            (report.files, report.settings)
            for report in reports
            if report.unsent and report.settings is not None
        ]
        self.sender.start(Errand(outboxes, pings_of(self._settings(reports)) if ping else ()))

    def _settings(self, reports: Sequence[Report]) -> list[Settings]:
        """Settings that may name a dead-man URL: the monitor lives also where no run does."""
        if self.looker.config is not None:
            return [read_settings(self.looker.config)]
        return [report.settings for report in reports if report.settings is not None]

    def _complain_once(self, about: str, text: str) -> None:
        if self._complained.get(about) != text:
            self._complained[about] = text
            self.complain(text)


def stamps(folder: Path) -> tuple[float, ...]:
    """Times of the files that change when a run is resumed, goes on, or ends."""
    run_dir = RunDir(folder)
    found = []
    for path in (run_dir.submissions, run_dir.attempts, run_dir.summary):
        try:
            found.append(path.stat().st_mtime_ns)
        except OSError:
            found.append(0)
    return tuple(found)


# ruff: noqa: T201 - printing is what a command line does


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
