"""Sends in a process of its own, so that a slow channel holds nobody up.

And so that a kill -9 of the monitor does not cut a delivery in two: the sender goes on to the end,
writes down what came of it, and holds the outbox's lock until then.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass

from monitor.alerts.channels.errors import DeliveryError
from monitor.alerts.channels.http import get
from monitor.alerts.outbox import deliver
from monitor.alerts.settings import NotSetError, Settings
from monitor.alerts.store import AlertFiles

Job = tuple[AlertFiles, Settings]


@dataclass(frozen=True)
class Errand:
    """What one sender does: outboxes to empty, then URLs to ping."""

    outboxes: Sequence[Job] = ()
    pings: Sequence[str] = ()

    def run(self) -> None:
        """Do it all; one run's trouble does not keep the others' messages."""
        for files, settings in self.outboxes:
            with suppress(OSError):
                deliver(files, settings)
        for url in self.pings:
            # Whoever misses the ping raises the alarm: there is nobody else to tell.
            with suppress(DeliveryError):
                get(url)


class Sender:
    """At most one sending process at a time."""

    def __init__(self) -> None:
        self._child: int | None = None

    def busy(self) -> bool:
        """Whether the last errand is still under way."""
        if self._child is None:
            return False
        with suppress(ChildProcessError):
            if os.waitpid(self._child, os.WNOHANG)[0] == 0:
                return True
        self._child = None
        return False

    def start(self, errand: Errand) -> None:
        """Begin an errand, unless one is under way."""
        if self.busy() or not (errand.outboxes or errand.pings):
            return
        child = os.fork()
        if child == 0:
            _leave(errand.run)
        self._child = child

    def wait(self, timeout_s: float) -> bool:
        """Wait for the errand's end; returns whether it came in time."""
        deadline = time.monotonic() + timeout_s
        while self.busy():
            if time.monotonic() > deadline:
                return False
            time.sleep(0.02)
        return True


def _leave(work: Callable[[], None]) -> None:
    """In the child: work apart from the monitor's terminal and its pipes, and leave."""
    code = 1
    try:
        os.setsid()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        nothing = os.open(os.devnull, os.O_RDWR)
        for stream in (0, 1, 2):
            os.dup2(nothing, stream)
        work()
        code = 0
    finally:
        os._exit(code)


def pings_of(settings: Sequence[Settings]) -> list[str]:
    """Distinct dead-man URLs whose variables are set here."""
    found: list[str] = []
    for one in settings:
        with suppress(NotSetError):
            url = one.value("deadman_url")
            if url and url not in found:
                found.append(url)
    return found
