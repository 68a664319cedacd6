"""Time that was really watched, and how long nothing has changed in it. Pure."""

from __future__ import annotations

from dataclasses import dataclass

LONGEST_LOOK_S = 5.0
"""Seconds that one look at the world counts for at the most."""


@dataclass
class WatchedClock:
    """Counts the time in which this process could see what happens.

    A process that stood still (SIGSTOP, a suspended job), or was blocked in a file system that does
    not answer, has seen nothing meanwhile: such a gap must not be held against those it watches.
    """

    seconds: float = 0.0
    _last: float | None = None

    def hold(self, now: float) -> None:
        """Go on to ``now`` without counting: what is watched cannot move."""
        self._last = now

    def tick(self, now: float) -> float:
        """Go on to ``now`` (monotonic seconds); returns the whole gap since the last look."""
        gap = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        self.seconds += min(gap, LONGEST_LOOK_S)
        return gap


@dataclass
class Stall:
    """How long one thing has not changed, by a watched clock."""

    clock: WatchedClock
    seen: object = None
    since: float = 0.0

    def look(self, seen: object) -> float:
        """Seconds for which it has been as it is now."""
        if seen != self.seen:
            self.seen, self.since = seen, self.clock.seconds
        return self.clock.seconds - self.since
