"""Stops clusters when their process ends in any way that Python can notice."""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGHUP)


class ExitGuard:
    """Calls `stop` at exit, and turns SIGTERM and SIGHUP into an orderly exit of this process.

    A handler that somebody else has installed stays. A fork of this process is not affected: it
    neither stops the cluster nor changes how it reacts to signals.
    """

    def __init__(self, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._owner_pid = os.getpid()
        self._installed: list[signal.Signals] = []

    def arm(self) -> None:
        """Start to watch."""
        atexit.register(self._at_exit)
        if threading.current_thread() is not threading.main_thread():
            return
        for number in _SIGNALS:
            if signal.getsignal(number) is signal.SIG_DFL:
                signal.signal(number, self._on_signal)
                self._installed.append(number)

    def disarm(self) -> None:
        """Stop to watch, and give the signals back."""
        atexit.unregister(self._at_exit)
        if threading.current_thread() is threading.main_thread():
            for number in self._installed:
                signal.signal(number, signal.SIG_DFL)
            self._installed.clear()

    def _at_exit(self) -> None:
        if os.getpid() == self._owner_pid:
            self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        del frame
        if os.getpid() != self._owner_pid:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        sys.exit(128 + number)
