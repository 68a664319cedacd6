"""Delivery of alerts: sends what is in a run's outbox, in a process of its own.

At least once, and never twice where that can be avoided: every try is written down before and
after. A try without an end means that the sender was killed, or the answer was lost: the message
may have arrived, and is sent again under the same key. A slow channel holds nobody up, and a
kill -9 of the monitor does not cut a delivery in two: the sending process finishes its tries,
writes down their outcome, and holds the outbox's lock until then.

``python -m monitor test-alert`` sends one test message through every channel that is set up.
"""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import getpass
import os
import signal
import socket
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from tenacity import (
    Retrying,
    retry_if_exception,
    stop_after_attempt,
    wait_random_exponential,
)

from submitrain.errors import RunError, UserError
from submitrain.monitor.alerts.channels import CHANNELS, DeliveryError, Send, request
from submitrain.monitor.alerts.rules import Rule, Severity
from submitrain.monitor.alerts.settings import NotSetError, Settings, read_settings
from submitrain.monitor.alerts.state import Message, Notice, Transition
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.run_folder import RunDir, find_run

TRYING, SENT, FAILED, GIVEN_UP = "trying", "sent", "failed", "given_up"
MAX_IMMEDIATE_TRIES = 3
FIRST_BACKOFF_S, LONGEST_BACKOFF_S = 5.0, 600.0
PASS_S = 60.0
"""Seconds after which a pass begins no further message."""


@dataclass(frozen=True)
class Tries:
    """What deliveries.jsonl says of one message."""

    failures: int = 0
    done: bool = False
    uncertain: bool = False
    """An earlier try may have arrived."""
    next_at: float = 0.0

    def after(self, line: Mapping[str, Any]) -> Tries:
        """With one more line."""
        outcome = line.get("outcome")
        if outcome == TRYING:
            return Tries(self.failures, self.done, True, self.next_at)
        if outcome == FAILED:
            uncertain = bool(line.get("uncertain"))
            return Tries(self.failures + 1, self.done, uncertain, float(line.get("next_at", 0.0)))
        return Tries(self.failures, True, False, self.next_at)


def tries_of(lines: Iterable[Mapping[str, Any]]) -> dict[str, Tries]:
    """Tries by message key."""
    found: dict[str, Tries] = {}
    for line in lines:
        key = str(line.get("key"))
        found[key] = found.get(key, Tries()).after(line)
    return found


def backoff_s(failures: int) -> float:
    """Seconds until the next pass tries again, after so many passes that failed."""
    return float(min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2 ** min(failures - 1, 20)))


def due(messages: Iterable[Message], tries: Mapping[str, Tries], now: float) -> list[Message]:
    """Messages to send now: none before an earlier one of the same channel and alert."""
    found: list[Message] = []
    held: set[tuple[str, str]] = set()
    for message in messages:
        known = tries.get(message.key, Tries())
        if known.done:
            continue
        if known.next_at > now or message.about & held:
            held |= message.about
        else:
            found.append(message)
    return found


def deliver(
    files: AlertFiles,
    settings: Settings,
    *,
    channels: Mapping[str, Send] = CHANNELS,
    clock: Callable[[], float] = time.time,
) -> bool:
    """One pass over a run's outbox; returns false where somebody else is sending."""
    with files.locked("outbox") as mine:
        state = files.load() if mine else None
        if state is None:
            return mine
        tries = tries_of(files.read_deliveries())
        began, down, unsent = clock(), set[str](), set[tuple[str, str]]()
        for message in due(state.outbox, tries, began):
            if message.channel in down or message.about & unsent or clock() - began > PASS_S:
                unsent |= message.about
                continue
            known = tries.get(message.key, Tries())
            error = _send(files, settings, channels[message.channel], message, known, clock)
            if error is not None:
                unsent |= message.about
                if error.transient:
                    down.add(message.channel)
    return True


def _send(
    files: AlertFiles,
    settings: Settings,
    send: Send,
    message: Message,
    known: Tries,
    clock: Callable[[], float],
) -> DeliveryError | None:
    """Try one message and write down its outcome; returns what went wrong."""

    def note(outcome: str, **more: Any) -> None:
        line = {"key": message.key, "channel": message.channel, "outcome": outcome, **more}
        files.append_delivery({"t": round(clock(), 3), **line})

    note(TRYING)
    try:
        remark = settings.redact(_retrying(send, message, settings, known.uncertain))
    except DeliveryError as error:
        text = settings.redact(str(error))
        if clock() - message.created_at > settings.alerts.give_up_s:
            note(GIVEN_UP, error=text)
            return None
        wait_s = max(backoff_s(known.failures + 1), error.retry_after_s or 0.0)
        uncertain = known.uncertain or error.uncertain
        note(FAILED, error=text, uncertain=uncertain, next_at=round(clock() + wait_s, 3))
        return error
    told = [notice.key for notice in message.entries]
    note(SENT, entries=told, **({"remark": remark} if remark else {}))
    return None


def _retrying(send: Send, message: Message, settings: Settings, uncertain: bool) -> str:
    """Send, with a few more tries at once for what passes quickly."""
    maybe_there = uncertain

    def once() -> str:
        nonlocal maybe_there
        try:
            return send(message, settings, maybe_there)
        except NotSetError as error:
            raise DeliveryError(str(error)) from error
        except DeliveryError as error:
            maybe_there = maybe_there or error.uncertain
            raise
        except Exception as error:
            # A channel of a third party may raise anything; the other messages must go out.
            raise DeliveryError(f"{type(error).__name__}: {error}", uncertain=True) from error

    def is_retryable(error: BaseException) -> bool:
        return (
            isinstance(error, DeliveryError)
            and error.transient
            and not error.uncertain
            and error.retry_after_s is None
        )

    retrying = Retrying(
        stop=stop_after_attempt(MAX_IMMEDIATE_TRIES),
        wait=wait_random_exponential(multiplier=0.2, max=2.0),
        retry=retry_if_exception(is_retryable),
        reraise=True,
    )
    return retrying(once)


@dataclass(frozen=True)
class DeliveryTask:
    """What one sending process does: outboxes to empty, then URLs to ping."""

    outboxes: Sequence[tuple[AlertFiles, Settings]] = ()
    pings: Sequence[str] = ()

    def run(self) -> None:
        """Do it all; one run's trouble does not keep the others' messages."""
        for files, settings in self.outboxes:
            with suppress(OSError):
                deliver(files, settings)
        for url in self.pings:
            # Whoever misses the ping raises the alarm: there is nobody else to tell.
            with suppress(DeliveryError):
                request(url)


class Sender:
    """At most one sending process at a time."""

    def __init__(self) -> None:
        self._child: int | None = None

    def busy(self) -> bool:
        """Whether the last task is still under way."""
        if self._child is None:
            return False
        with suppress(ChildProcessError):
            if os.waitpid(self._child, os.WNOHANG)[0] == 0:
                return True
        self._child = None
        return False

    def start(self, task: DeliveryTask) -> None:
        """Begin a task, unless one is under way."""
        if self.busy() or not (task.outboxes or task.pings):
            return
        child = os.fork()
        if child == 0:
            _run_detached(task)
        self._child = child

    def wait(self, timeout_s: float) -> bool:
        """Wait for the task's end; returns whether it came in time."""
        deadline = time.monotonic() + timeout_s
        while self.busy():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def _run_detached(task: DeliveryTask) -> NoReturn:
    """In the child: work apart from the monitor's terminal and its pipes, and exit."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        task.run()
        code = 0
    finally:
        os._exit(code)


def dead_man_urls(settings: Sequence[Settings]) -> list[str]:
    """Distinct dead-man URLs whose variables are set here."""
    found: list[str] = []
    for one in settings:
        with suppress(NotSetError):
            url = one.value("deadman_url")
            if url and url not in found:
                found.append(url)
    return found


def main(options: argparse.Namespace) -> int:
    """Send, and say of each channel whether it took the message."""
    if options.config is None and options.run is None:
        raise UserError("test-alert: expected a RUN or --config FILE, got neither")
    if options.config is not None:
        settings = read_settings(Path(options.config))
    else:
        settings = read_settings(RunDir(find_run(options.run, Path(options.runs_dir))).config)
    if not settings.channels:
        raise UserError(
            "alerts: expected at least one channel (slack_webhook, email_to, pagerduty_key, "
            "webhook_url, apprise_url), got none; see docs/monitoring.md"
        )
    refused = [name for name in settings.channels if not _test(name, settings)]
    if refused:
        raise RunError(f"test-alert: not taken by {', '.join(refused)}")
    return 0


def _test(name: str, settings: Settings) -> bool:
    try:
        # PagerDuty also gets the resolve, so that no incident stays open.
        also = (Transition.RESOLVED,) if name == "pagerduty" else ()
        for event in (Transition.FIRING, *also):
            remark = CHANNELS[name](trial_message(name, event), settings, False)
    except (DeliveryError, NotSetError) as error:
        print(f"{name}: failed: {settings.redact(str(error))}")
        return False
    print(f"{name}: taken{f' ({remark})' if remark else ''}")
    return True


def trial_message(channel: str, event: Transition = Transition.FIRING) -> Message:
    """A message that says it is a test."""
    now, host = time.time(), socket.gethostname()
    notice = Notice(
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
    return Message(uuid.uuid4().hex[:24], channel, (notice,), now)
