"""The stop flag: signal handlers and the supervisor's request only set it. Imports no torch.

A warning (SIGUSR2 from Slurm) stops nothing by itself: Slurm sends it up to a minute early, and for
the time limit and a preemption alike. It is passed on to the supervisor, which knows the deadline.

Ranks read it at optimizer-step boundaries, agree on it by an all-reduce, save once and exit with
``EXIT_STOPPED``. Install the handlers before torch is imported: a signal during the import would
otherwise kill the rank.
"""

from __future__ import annotations

import signal
from enum import IntEnum
from types import FrameType


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
        self._reason = StopReason.NONE
        self.warnings = 0

    @property
    def reason(self) -> StopReason:
        """Strongest reason so far; NONE means go on."""
        return self._reason

    def request(self, reason: StopReason) -> None:
        """Ask for a stop; safe in a signal handler and from any thread."""
        if reason > self._reason:
            self._reason = reason


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
