"""Whether ranks hang, and which one makes the others wait: pure functions of what was seen.

All ranks wait for the one that does not come, so all of them stop advancing. To blame is the one
that is silent while others beat; else the one that passed the fewest points of the program
(``progress``); else, by the stack dumps, the one that is not in a collective while others are.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from submitrain.events import Phase
from submitrain.launcher.worker.stacks import Stack

LONGEST_GAP_S = 5.0
"""Seconds that the time between two polls counts for at the most."""


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
        """Go on to ``now`` (monotonic seconds); returns the whole gap since the last tick."""
        gap = 0.0 if self._last is None else max(0.0, now - self._last)
        self._last = now
        self.seconds += min(gap, LONGEST_GAP_S)
        return gap


@dataclass
class Stall:
    """How long one thing has not changed, by a watched clock."""

    clock: WatchedClock
    seen: object = None
    since: float = 0.0

    def update(self, seen: object) -> float:
        """Seconds for which it has been as it is now."""
        if seen != self.seen:
            self.seen, self.since = seen, self.clock.seconds
        return self.clock.seconds - self.since


Budget = Callable[[str], float | None]
"""From a phase to seconds; None = no limit."""


@dataclass(frozen=True)
class Hang:
    """A hang, and who is to blame; ``rank`` None where nothing tells the ranks apart."""

    rank: int | None
    host: str
    phase: str
    step: int
    stalled_s: float
    budget_s: float
    why: str
    """What gives the rank away."""
    where: str = ""
    """file:line of the innermost frame that is the user's or ours."""
    stacks: str = ""
    """Folder with the stack dumps, relative to the run folder."""
    everyone: bool = False
    """No rank gives a sign of life: it may be the file system."""

    def describe(self) -> str:
        """``rank 3 (node4) hung in phase step for 75 s (budget 60 s) at a.py:7: why; stacks in``"""
        who = "all ranks" if self.rank is None else f"rank {self.rank}"
        host = f" ({self.host})" if self.host else ""
        where = f" at {self.where}" if self.where else ""
        stacks = f"; stacks in {self.stacks}" if self.stacks else ""
        return (
            f"{who}{host} hung in phase {self.phase} after step {self.step} for "
            f"{self.stalled_s:.0f} s (budget {self.budget_s:.0f} s){where}: {self.why}{stacks}"
        )


@dataclass(frozen=True)
class RankState:
    """One rank as its heartbeats show it, by the watcher's own clock."""

    rank: int
    host: str
    phase: str
    step: int
    progress: tuple[int, int]
    """Points passed by the main thread, and by the saving one."""
    stalled_s: float
    """Without progress."""
    silent_s: float
    """Without a heartbeat."""
    late: bool
    """Some heartbeats are missing: its stall may be of a moment before that."""
    told: bool
    """It recorded its finish, its stop or its failure."""

    @property
    def passed(self) -> tuple[int, int, int]:
        """How far it came; the rank with the least keeps the others waiting."""
        save = self.progress[1] if self.phase == Phase.SAVE else 0
        return self.step, self.progress[0], save

    def hang(self, seconds: float, limit: float, why: str, *, named: bool = True) -> Hang:
        """The hang that this rank shows; not ``named``: nothing tells it from the others."""
        rank, host = (self.rank, self.host) if named else (None, "")
        return Hang(rank, host, self.phase, self.step, seconds, limit, why)


def find_hang(states: Sequence[RankState], budget: Budget, silence: Budget) -> Hang | None:
    """The hang that these states show, or None while every rank is within its budgets."""
    waiting = [one for one in states if not one.told]
    if not waiting:
        return _lingering(states, budget)
    return _silent(waiting, silence) or _stalled(waiting, budget)


def _silent(states: Sequence[RankState], silence: Budget) -> Hang | None:
    """Ranks that do not beat, while those that do are not getting anywhere either.

    Where others advance, the silent one takes part: only its records do not reach us.
    """
    quiet = [one for one in states if _over(one.silent_s, silence(one.phase))]
    if not quiet:
        return None
    others = [one for one in states if one not in quiet]
    first = min(quiet, key=lambda one: (one.passed, one.rank))
    limit = silence(first.phase) or 0.0
    if _advance(others, limit):
        return None
    if others or len(states) == 1:
        why = f"no heartbeat for {first.silent_s:.0f} s"
        if others:
            why += f" while {len(others)} of {len(states)} ranks beat"
        more = [str(one.rank) for one in quiet if one is not first]
        why += f"; ranks {', '.join(more[:8])} are silent as well" if more else ""
        return replace(first.hang(first.silent_s, limit, why), everyone=not others)
    if all(one.silent_s > 2 * limit for one in quiet):
        why = f"no heartbeat from any of {len(states)} ranks"
        return replace(first.hang(first.silent_s, limit, why, named=False), everyone=True)
    return None


def _stalled(states: Sequence[RankState], budget: Budget) -> Hang | None:
    """Ranks that beat and do not advance. Only who is behind counts: the others wait for it."""
    if not any(_over(one.stalled_s, budget(one.phase)) for one in states):
        return None
    late = [one for one in states if one.late]
    if len(late) == len(states):
        return None  # silence has a limit of its own
    least = min(one.passed for one in states)
    behind = [one for one in states if one.passed == least]
    suspects = late or behind
    if not all(_over(one.stalled_s, budget(one.phase)) for one in suspects):
        return None
    first = min(suspects, key=lambda one: one.rank)
    limit = budget(first.phase) or 0.0
    if _advance(states, limit):
        return None
    if len(suspects) == len(states) > 1:
        return first.hang(first.stalled_s, limit, "no rank advances", named=False)
    if suspects is late:
        why = f"no heartbeat for {first.silent_s:.0f} s while others beat"
    elif len(states) == 1:
        why = "it does not advance"
    else:
        others = len(states) - len(suspects)
        why = f"{others} of {len(states)} ranks are further on and wait for it"
    more = [str(one.rank) for one in suspects if one is not first]
    why += f"; so does rank {', '.join(more[:8])}" if more else ""
    return first.hang(first.stalled_s, limit, why)


def straggler(states: Sequence[RankState]) -> RankState | None:
    """The rank that the others wait for, as far as heartbeats tell; None where they do not."""
    least = min(one.passed for one in states)
    behind = [one for one in states if one.passed == least]
    suspects = [one for one in behind if one.late and not one.told] or behind
    if len(suspects) == len(states) > 1:
        return None
    return min(suspects, key=lambda one: one.rank)


def _advance(states: Sequence[RankState], limit: float) -> bool:
    """Whether some rank gets on: then nobody keeps it waiting."""
    return any(one.stalled_s < limit / 2 for one in states)


def _lingering(states: Sequence[RankState], budget: Budget) -> Hang | None:
    """Every rank said its last word, and processes are still there."""
    limit = budget(Phase.EXIT)
    quiet_s = [min(one.stalled_s, one.silent_s) for one in states]
    if not states or not _over(min(quiet_s), limit):
        return None
    first, why = states[quiet_s.index(max(quiet_s))], "a process did not leave"
    hang = first.hang(min(quiet_s), limit or 0.0, why, named=False)
    return replace(hang, phase=Phase.EXIT)


def _over(seconds: float, limit: float | None) -> bool:
    return limit is not None and seconds > limit


def name_by_stacks(hang: Hang, stacks: Mapping[int, Stack], hosts: Mapping[int, str]) -> Hang:
    """The same hang with the place where the culprit stands, and with a culprit if stacks show it.

    ``hosts`` names every rank that was asked for its stacks; one without a dump did not react.
    """
    mute = sorted(set(hosts) - set(stacks))
    inside = [rank for rank, stack in stacks.items() if stack.in_collective]
    outside = sorted(set(stacks) - set(inside))
    if hang.rank is None and mute and stacks:
        why = "its process does not react to signals"
        hang = replace(hang, rank=mute[0], host=hosts.get(mute[0], ""), why=why)
    elif hang.rank is None and inside and outside:
        why = f"{len(inside)} of {len(stacks)} ranks are in a collective that it has not entered"
        hang = replace(hang, rank=outside[0], host=hosts.get(outside[0], ""), why=why)
    stack = stacks.get(hang.rank) if hang.rank is not None else None
    return replace(hang, where=stack.where) if stack is not None else hang
