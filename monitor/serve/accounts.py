"""Keeps the accounts of time of many runs, each read again only when that costs little.

An account needs every event of rank 0, which may be a large file. After one was read again, no
other is until 100 times as long has passed as that took, a hundredth of a core; those that were
never read come a few at each look.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from monitor.goodput import Goodput
from monitor.goodput_read import read_goodput
from monitor.status import RunState, RunStatus
from train.errors import UserError

FRESH_S = 120.0
PATIENCE = 100.0
TICK_S = 0.2
"""Seconds a look may spend on accounts; what is left comes with the next look."""


class Accounts:
    """Accounts by run id; asks no scheduler."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._found: dict[str, tuple[Goodput, float, bool]] = {}
        self._unreadable: dict[str, float] = {}
        """When to try again."""
        self._free_at = float("-inf")

    def update(self, runs: Sequence[RunStatus]) -> dict[str, Goodput]:
        """Read those that are due; returns what is known of these runs."""
        names = {one.run_id for one in runs}
        self._found = {name: value for name, value in self._found.items() if name in names}
        deadline = self._clock() + TICK_S
        for status in sorted(runs, key=self._due_at):
            if self._clock() > deadline:
                break
            new = self._due_at(status) == float("-inf")
            if new or max(self._free_at, self._due_at(status)) <= self._clock():
                began = self._clock()
                self._read(status)
                if not new:
                    self._free_at = self._clock() + PATIENCE * (self._clock() - began)
        return {name: value for name, (value, _, _) in self._found.items()}

    def _due_at(self, status: RunStatus) -> float:
        if status.run_id in self._unreadable:
            return self._unreadable[status.run_id]
        _, due_at, ended = self._found.get(status.run_id, (None, float("-inf"), False))
        return due_at if ended == status.state.ended else float("-inf")

    def _read(self, status: RunStatus) -> None:
        ended = status.state.ended
        self._unreadable.pop(status.run_id, None)
        try:
            goodput = read_goodput(
                Path(status.folder),
                ended=ended,
                pending=status.state is RunState.QUEUED,
                run=None,
            )
        except (OSError, UserError):
            self._unreadable[status.run_id] = self._clock() + FRESH_S
            return
        due_at = float("inf") if ended else self._clock() + FRESH_S
        self._found[status.run_id] = goodput, due_at, ended
