"""Helper processes must outlive the signals that tell their rank to save.

Slurm sends the warning before the time limit to every process of a step; a loader process that
died of it would take its rank down in the middle of the save. So it does with SIGUSR1, which asks
ranks for their stacks: a helper would die of it, or write into its rank's dump.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


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
