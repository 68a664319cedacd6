"""Signals that reach the supervisor: noted, in order, and acted upon by its loop."""

from __future__ import annotations

import signal
from types import FrameType

NOTED = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2, signal.SIGCONT)


class SignalNotes:
    """Which signals this process got. Handlers only write it down."""

    def __init__(self) -> None:
        self._seen: list[signal.Signals] = []

    def install(self) -> None:
        """Take the signals over, from submitit's own handlers too: the supervisor decides."""
        for number in NOTED:
            signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._seen.append(signal.Signals(number))

    @property
    def terminated(self) -> bool:
        """Whether anybody asked this process to end."""
        return signal.SIGTERM in self._seen or signal.SIGINT in self._seen

    @property
    def warnings(self) -> int:
        """How often a warning came: the time limit or a preemption is near."""
        return self._seen.count(signal.SIGUSR2)

    @property
    def names(self) -> list[str]:
        """Names of what came, in order."""
        return [number.name for number in self._seen]
