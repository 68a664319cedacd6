"""What the processes of a rank do about stop signals, the end of their parent, and a full disk.

Ranks read the stop flag at optimizer-step boundaries, agree on it by an all-reduce, save once and
exit with ``EXIT_STOPPED``; handlers and the supervisor's request only set it. A warning (SIGUSR2
from Slurm) stops nothing by itself: Slurm sends it up to a minute early, and for the time limit and
a preemption alike. It is passed on to the supervisor, which knows the deadline. Install the
handlers before torch is imported: a signal during the import would otherwise kill the rank.

Helper processes (loaders, trackers) must outlive these signals: Slurm sends them to every process
of a step, and a loader that died of one would take its rank down in the middle of the save. So it
is with SIGUSR1, which asks ranks for their stacks. Imports no torch.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import IntEnum
from types import FrameType
from typing import Any, TextIO

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


class StopReason(IntEnum):
    """Why to stop; the highest one that any rank saw is what all ranks agree on."""

    NONE = 0
    ASKED = 1
    """The supervisor wrote a stop request: deadline near, restart on other nodes, ..."""
    TERMINATED = 2
    """SIGTERM: KILL follows within KillWait."""


class StopFlag:
    """Holds the strongest reason to stop that this rank has seen; never goes back."""

    def __init__(self) -> None:
        self.reason = StopReason.NONE
        """Strongest reason so far; NONE means go on."""
        self.warnings = 0
        """How often Slurm's warning signal came."""

    def request(self, reason: StopReason) -> None:
        """Ask for a stop; safe in a signal handler and from any thread."""
        self.reason = max(self.reason, reason)


def install_handlers(flag: StopFlag) -> None:
    """SIGTERM sets the flag, SIGUSR2 is counted; SIGINT belongs to the terminal, not to ranks."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            flag.warnings += 1
        else:
            flag.request(StopReason.TERMINATED)

    signal.signal(signal.SIGUSR2, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes inside: they begin with the stop signals blocked (signal masks survive fork
    and exec), so none is lost to the time before ``ignore_stop_signals``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """First thing in a helper process: only its parent's end ends it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG).

    A forked process shares its parent's sockets: alive, it would hide from the other ranks for
    seconds that this rank is dead.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)


class LossyStream:
    """A text stream whose writes never raise OSError; everything else is the stream's own.

    Logs of ranks and supervisor are files of the run folder: with Python's own streams one line of
    progress on a full disk is an OSError in the middle of a step.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0
        """Writes that failed."""

    def write(self, text: str) -> int:
        """Write as far as the disk lets us; says that all of it was written."""
        try:
            self._stream.write(text)
        except OSError:
            self.lost += 1
        return len(text)

    def flush(self) -> None:
        """Flush as far as the disk lets us."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate_log_write_errors() -> None:
    """Make this process's standard output and error lossy."""
    sys.stdout = LossyStream(sys.stdout)
    sys.stderr = LossyStream(sys.stderr)
