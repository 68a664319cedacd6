"""Effective training time: what the seconds of a run's allocations were good for.

The sum over ``timeline.book`` by category, and its text. Definitions: docs/goodput.md.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.attempts import read_attempts
from submitrain.events import Event, Kind, read_events
from submitrain.monitor.accounting.records import (
    RunRecords,
    rank_events,
    read_allocations,
    slurm_job_ids,
)
from submitrain.monitor.accounting.timeline import Category, book, queued_us
from submitrain.run_folder import RunDir
from submitrain.slurm.client import Ask, ask
from submitrain.text import duration


@dataclass(frozen=True)
class Goodput:
    """The account of one run. Times are whole microseconds, so that sums are exact."""

    wall_us: dict[Category, int]
    """Time of the allocations by category."""
    rank_us: dict[Category, int]
    """The same times the ranks that the allocation had room for."""
    queued_us: int
    """Time in the queue: no allocation."""
    attempts: int
    gpus: bool
    """Whether a rank is a GPU."""

    @property
    def allocated_us(self) -> int:
        """Time of all allocations together."""
        return sum(self.wall_us.values())

    @property
    def allocated_rank_us(self) -> int:
        """The same in rank-microseconds."""
        return sum(self.rank_us.values())

    @property
    def effective(self) -> float | None:
        """Share of the allocated rank time that was productive; None without an allocation."""
        total = self.allocated_rank_us
        return self.rank_us[Category.PRODUCTIVE] / total if total else None

    def as_json(self) -> dict[str, Any]:
        """Seconds and rank-seconds by category, for ``--json`` and ``summary.json``."""
        effective = self.effective
        return {
            "effective": None if effective is None else round(effective, 6),
            "allocated_s": self.allocated_us / 1e6,
            "allocated_rank_s": self.allocated_rank_us / 1e6,
            "queued_s": self.queued_us / 1e6,
            "attempts": self.attempts,
            "ranks_are_gpus": self.gpus,
            "seconds": {str(name): value / 1e6 for name, value in self.wall_us.items()},
            "rank_seconds": {str(name): value / 1e6 for name, value in self.rank_us.items()},
        }


def read_goodput(
    folder: Path, *, ended: bool, pending: bool = False, run: Ask | None = ask
) -> Goodput:
    """The account of the run in a folder, as of now; ``run`` None asks no scheduler."""
    run_dir = RunDir(folder)
    submissions = tuple(read_events(run_dir.submissions))
    job_ids = slurm_job_ids(submissions) if run is not None else []
    return account(
        RunRecords(
            attempts=read_attempts(run_dir),
            events=tuple(rank_events(run_dir.events(0))),
            submissions=submissions,
            jobs=tuple(read_allocations(job_ids, run=run or ask)[0]),
            now=time.time(),
            ended=ended,
            pending=pending,
        )
    )


def account(records: RunRecords) -> Goodput:
    """What every microsecond of a run's allocations was spent on."""
    wall, ranks = dict.fromkeys(Category, 0), dict.fromkeys(Category, 0)
    booked = book(records)
    for _, stretches in booked:
        for one in stretches:
            spent_us = one.ended_us - one.started_us
            wall[one.category] += spent_us
            ranks[one.category] += spent_us * one.busy
            ranks[Category.SPARE] += spent_us * (one.capacity - one.busy)
    held = [allocation for allocation, _ in booked]
    attempts = sum(len(one.attempts) for one in held)
    return Goodput(wall, ranks, queued_us(records, held), attempts, on_gpus(records.events))


def on_gpus(events: Iterable[Event]) -> bool:
    """Whether a rank of this run is a GPU."""
    return any(event["kind"] == Kind.SETUP and event.get("backend") == "nccl" for event in events)


def headline(goodput: Goodput) -> str:
    """``effective 91.3 % of 3 h 12 min allocated``; empty before the first allocation."""
    if goodput.effective is None:
        return ""
    queued = (
        f", {duration(goodput.queued_us / 1e6)} queued" if goodput.queued_us >= 1_000_000 else ""
    )
    share = f"{100 * goodput.effective:.1f} %"
    return f"effective {share} of {duration(goodput.allocated_us / 1e6)} allocated{queued}"


def category_rows(goodput: Goodput) -> list[tuple[str, str]]:
    """Each category that took time, the largest first: its name, and share, time, rank time."""
    unit = "GPU" if goodput.gpus else "rank"
    total = goodput.allocated_rank_us
    ordered = sorted(Category, key=lambda name: -goodput.rank_us[name])
    return [
        (
            str(name).replace("_", " "),
            f"{100 * goodput.rank_us[name] / total:5.1f} %  "
            f"{duration(goodput.wall_us[name] / 1e6)}, "
            f"{goodput.rank_us[name] / 3.6e9:.2f} {unit} hours",
        )
        for name in ordered
        if goodput.rank_us[name]
    ]
