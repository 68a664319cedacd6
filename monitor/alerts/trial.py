"""``python -m monitor test-alert``: one test message through every channel that is set up."""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import getpass
import socket
import time
import uuid
from pathlib import Path

from monitor.alerts.channels import CHANNELS, DeliveryError
from monitor.alerts.model import Entry, Event, Message
from monitor.alerts.settings import NotSetError, Settings, read_settings
from monitor.rules import Rule, Severity
from monitor.runs import find_run
from train.errors import RunError, UserError
from train.rundir import RunDir


def main(options: argparse.Namespace) -> int:
    """Send, and say of each channel whether it took the message."""
    settings = _settings(options)
    if not settings.channels:
        raise UserError(
            "alerts: expected at least one channel (slack_webhook, email_to, pagerduty_key, "
            "webhook_url, apprise_url), got none; see docs/monitoring.md"
        )
    refused = [name for name in settings.channels if not _try(name, settings)]
    if refused:
        raise RunError(f"test-alert: not taken by {', '.join(refused)}")
    return 0


def _settings(options: argparse.Namespace) -> Settings:
    if options.config is not None:
        return read_settings(Path(options.config))
    if options.run is None:
        raise UserError("test-alert: expected a RUN or --config FILE, got neither")
    return read_settings(RunDir(find_run(options.run, Path(options.runs_dir))).config)


def _try(name: str, settings: Settings) -> bool:
    try:
        for event in (Event.FIRING, Event.RESOLVED) if name == "pagerduty" else (Event.FIRING,):
            remark = CHANNELS[name](message_for(name, event), settings, False)
    except (DeliveryError, NotSetError) as error:
        print(f"{name}: failed: {settings.redact(str(error))}")
        return False
    print(f"{name}: taken{f' ({remark})' if remark else ''}")
    return True


def message_for(channel: str, event: Event) -> Message:
    """A test message; PagerDuty also gets its resolve, so that no incident stays open."""
    now, host = time.time(), socket.gethostname()
    entry = Entry(
        key=f"test-{uuid.uuid4().hex}",
        event=event,
        run_id="test-alert",
        fingerprint=f"test-{host}",
        rule=Rule.FINISHED,
        subject="run",
        severity=Severity.INFO,
        text=f"a test by {getpass.getuser()} on {host}: alerts arrive here",
        next_step="",
        t=now,
        since=now,
    )
    return Message(uuid.uuid4().hex[:24], channel, (entry,), now)
