"""Books the time of one allocation to categories; what was booked sums up to it exactly. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from monitor.allocations import AttemptTime


class Category(StrEnum):
    """What a stretch of an allocation was spent on."""

    PRODUCTIVE = "productive"
    """Optimizer steps whose result the run kept."""
    STARTUP = "startup"
    """From the start of the job, or of an attempt, to the first step: imports, rendezvous, data,
    building the model."""
    DATA_WAIT = "data_wait"
    """Waiting for the loader in steps that were kept (of the steps that were logged)."""
    SAVE = "save"
    """Training stood still for a checkpoint; what is written in the background is not counted."""
    RESTORE = "restore"
    """Reading and verifying a checkpoint."""
    VALIDATION = "validation"
    EXPORT = "export"
    RECOMPUTED = "recomputed"
    """Steps whose result was thrown away, so that they were, or will be, computed again."""
    STALLED = "stalled"
    """From the last progress of a hung attempt until it was ended."""
    LOST = "lost"
    """From the last progress of an attempt that failed otherwise to its end: unfinished work, and
    the time to notice."""
    WAITING = "waiting"
    """No rank computes: ranks leave, the supervisor decides and pauses, the job ends."""
    SPARE = "spare"
    """Nodes held in reserve; only in rank-seconds."""
    UNEXPLAINED = "unexplained"
    """Nothing was recorded: a silent job, or an allocation without a supervisor."""


@dataclass(frozen=True)
class Stretch:
    """A stretch of an allocation that was spent on one thing."""

    started_us: int
    ended_us: int
    category: Category
    busy: int
    """Ranks that it is booked to; those beyond, up to ``capacity``, were spare."""
    capacity: int
    attempt: int
    """The attempt that runs, or ran last; 0 in an allocation without one."""


@dataclass
class Ledger:
    """Books the time from each mark to the next one; time never runs backwards here."""

    at_us: int
    end_us: int
    wall: dict[Category, int]
    ranks: dict[Category, int]
    category: Category = Category.UNEXPLAINED
    capacity: int = 1
    """Ranks that the allocation has room for."""
    limit_us: int = 0
    """No mark of the attempt that runs is later: ranks of an old one may still write."""
    world_size: int = 0
    """Ranks of the attempt that runs; 0 between attempts, when the whole allocation waits."""
    number: int = 0
    """The attempt that runs, or ran last."""
    stretches: list[Stretch] | None = None
    """What was booked, in the order of time; None where only the sums are wanted."""

    def mark(self, t_us: int, category: Category) -> None:
        """From here on the time belongs to ``category``."""
        self._book(t_us)
        self.category = category

    def attempt(self, t_us: int, one: AttemptTime | None) -> None:
        """An attempt begins, or the last one is over and the whole allocation waits."""
        self.limit_us = self.end_us
        self.mark(t_us, Category.STARTUP if one is not None else Category.WAITING)
        self.limit_us = one.ended_us if one is not None else self.end_us
        self.number = one.attempt if one is not None else self.number
        self.world_size = one.world_size if one is not None else 0
        self.capacity = one.capacity if one is not None else self.capacity

    def close(self) -> None:
        """Book the rest."""
        self.limit_us = self.end_us
        self._book(self.end_us)

    def _book(self, t_us: int) -> None:
        until = max(self.at_us, min(t_us, self.end_us, self.limit_us))
        begin, spent, self.at_us = self.at_us, until - self.at_us, until
        busy = self.world_size or self.capacity
        if spent and self.stretches is not None:
            stretch = Stretch(begin, until, self.category, busy, self.capacity, self.number)
            self.stretches.append(stretch)
        self.wall[self.category] += spent
        self.ranks[self.category] += spent * busy
        self.ranks[Category.SPARE] += spent * (self.capacity - busy)
