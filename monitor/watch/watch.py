"""``python -m monitor watch``: polls one run or all of a folder, and sends, until told to stop.

What must not be forgotten is on disk after every poll; this process holds nothing.
"""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitrain.errors import UserError
from submitrain.monitor.alerts.channels import DeliveryError, load_apprise, moment
from submitrain.monitor.alerts.delivery import DeliveryTask, Sender, dead_man_urls
from submitrain.monitor.alerts.settings import Settings, read_settings
from submitrain.monitor.watch.observe import Stamps, stamps
from submitrain.monitor.watch.poll import PollResult, RunPoller
from submitrain.run_folder import find_run, list_runs
from submitrain.status import RunObservation, RunState, poll_runs

LAST_SENDING_S = 120.0
"""How long ``--once`` waits for its messages to be sent."""
LAST_POLLS_S = 1.0
"""Seconds between polls of a run that has ended, until its last message is sent."""
SHORTEST_SLEEP_S = 0.05


@dataclass
class Watcher:
    """``find`` lists run folders; ``show`` gets every result, ``warn`` what went wrong."""

    find: Callable[[], Sequence[Path]]
    poller: RunPoller
    show: Callable[[PollResult], None]
    warn: Callable[[str], None]
    sender: Sender = field(default_factory=Sender)
    clock: Callable[[], float] = time.time
    sleep: Callable[[float], None] = time.sleep
    """Waits so many seconds, or until it is worth another poll."""
    leaves: Callable[[Sequence[PollResult]], bool] = lambda results: False
    """Whether to stop after a round of polls, although not all is told."""

    def __post_init__(self) -> None:
        self._closed: dict[Path, Stamps] = {}
        self._warned: dict[str, str] = {}

    def poll_all(self) -> list[PollResult]:
        """Poll every run that is not closed, then send what is due."""
        folders = [folder for folder in self.find() if self._open(folder)]
        try:
            observations = list(poll_runs(folders, self._unreadable))
        except OSError as error:
            self._warn_once("", f"run folders cannot be read: {error}; trying again")
            observations = []
        results = [
            result
            for observation in observations
            if (result := self._poll(observation)) is not None
        ]
        for result in results:
            self.show(result)
        self._send(results, ping=len(results) == len(folders))
        return results

    def once(self) -> None:
        """One poll of every run, and everything that follows from it."""
        self.poll_all()
        if not self.sender.wait(LAST_SENDING_S):
            self.warn("messages are still being sent; the next poll continues with them")

    def run(self, *, interval_s: float, until_closed: bool) -> None:
        """Poll every ``interval_s`` seconds; ``until_closed``: until all runs have ended."""
        while True:
            began = time.monotonic()
            results = self.poll_all()
            closed = until_closed and bool(results) and all(one.closed for one in results)
            if closed or self.leaves(results):
                self.sender.wait(LAST_SENDING_S)
                return
            # What has been grouped for long enough goes out then, however long the interval is.
            waits = [one.due_in_s for one in results if one.due_in_s is not None]
            if until_closed and all(one.ended for one in results):
                waits.append(LAST_POLLS_S)
            left_s = began + interval_s - time.monotonic()
            sleep_s = min([left_s, *(one + SHORTEST_SLEEP_S for one in waits)])
            self.sleep(max(SHORTEST_SLEEP_S, sleep_s))

    def _unreadable(self, folder: Path, error: Exception) -> None:
        self._warn_once(folder.name, f"{folder.name}: {error}")

    def _poll(self, observation: RunObservation) -> PollResult | None:
        """Poll one run; its trouble is said once, and does not keep the others waiting."""
        folder = observation.evidence.folder
        try:
            result = self.poller.poll(observation, self.clock())
        except (UserError, OSError) as error:
            self._unreadable(folder, error)
            return None
        self._warned.pop(folder.name, None)
        if result.closed:
            self._closed[folder] = stamps(folder)
        return result

    def _open(self, folder: Path) -> bool:
        """Whether a run has to be polled: not closed, or touched since it was."""
        if folder in self._closed and stamps(folder) == self._closed[folder]:
            return False
        self._closed.pop(folder, None)
        return True

    def _send(self, results: Sequence[PollResult], *, ping: bool) -> None:
        outboxes = [
            (result.files, result.settings)
            for result in results
            if result.unsent and result.settings is not None
        ]
        # A file for all runs may name a dead-man URL: the monitor lives also where no run does.
        settings = [one.settings for one in results if one.settings is not None]
        if self.poller.config is not None:
            settings = [read_settings(self.poller.config)]
        self.sender.start(DeliveryTask(outboxes, dead_man_urls(settings) if ping else ()))

    def _warn_once(self, about: str, text: str) -> None:
        if self._warned.get(about) != text:
            self._warned[about] = text
            self.warn(text)


def main(options: argparse.Namespace) -> int:
    """Watch one run until its end, or all for ever."""
    config = None if options.config is None else Path(options.config).expanduser()
    if config is not None and not config.is_file():
        raise UserError(f"--config: expected a YAML file, got {options.config}, which is none")
    poller = RunPoller(
        config=config.absolute() if config is not None else None,
        state_dir=Path(options.state_dir).absolute() if options.state_dir else None,
        at_once=options.once,
    )
    runs_dir = Path(options.runs_dir).expanduser()
    folder = None if options.all else find_run(options.run, runs_dir)
    settings = _first_settings(poller, folder)
    interval_s = options.interval or settings.limits.interval_s
    if interval_s <= 0:
        raise UserError(f"--interval: expected seconds > 0, got {interval_s:g}")
    show = Printer(json=options.json, steps=folder is not None)
    watcher = Watcher(
        find=lambda: list_runs(runs_dir) if folder is None else [folder],
        poller=poller,
        show=show,
        warn=warn,
    )
    # TERM ends it at once: everything worth keeping is on disk.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
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

    def __call__(self, result: PollResult) -> None:
        """Show one result."""
        line = result.line
        self.states[line["run_id"]] = line["state"]
        if self._json:
            print(json.dumps(line), flush=True)
            return
        alerts = []
        for one in line.get("alerts", ()):
            muted = f" (follows from {one['muted_by']})" if one.get("muted_by") else ""
            alerts.append(f"{one['severity']} {one['rule']}{muted}: {one['text']}")
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


def _first_settings(poller: RunPoller, folder: Path | None) -> Settings:
    """The settings to begin with; what would not work is said now and not at 3 a.m.

    Raises:
        UserError: the settings are wrong, or a package is missing.
    """
    settings = poller.settings_of(folder) if folder else read_settings(poller.config or Path())
    if "apprise" in settings.channels:
        try:
            load_apprise()
        except DeliveryError as error:
            raise UserError(str(error)) from error
    if not settings.channels and (folder is not None or poller.config is not None):
        warn("no channel is set up (section alerts): alerts go to alerts.jsonl only")
    return settings


def warn(text: str) -> None:
    """Print a warning."""
    print(f"warning: {text}", file=sys.stderr, flush=True)
