"""Effective training time: what every second of a run's allocations was good for. Pure.

Each allocation is cut into stretches at the marks that supervisor and rank 0 left behind; a stretch
belongs to one category. So the categories sum up to the allocation by construction, in whole
microseconds, whatever the records look like. Definitions: docs/goodput.md.

The account of a run's time as text.

Reads what the account of a run rests on: its folder, and where Slurm answers its jobs' times.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.events import Kind, Phase, parse_event, read_events
from submitrain.monitor.accounting.time import (
    Allocation,
    AttemptTime,
    Category,
    Ledger,
    Span,
    allocations,
    attempt_times,
    queued_us,
    time_us,
    us_of,
)
from submitrain.run_folder import RunDir
from submitrain.slurm.client import Ask, ask, epoch_s

Event = dict[str, Any]


@dataclass(frozen=True)
class GoodputRecords:
    """What the account rests on; ``jobs`` come from the scheduler and may be empty."""

    attempts: tuple[Event, ...] = ()
    """attempts.jsonl"""
    events: tuple[Event, ...] = ()
    """Events of rank 0; heartbeats and samples may be left out but for each attempt's last."""
    submissions: tuple[Event, ...] = ()
    jobs: tuple[Span, ...] = ()
    """Allocations as the scheduler knows them, one for each time that a job ran."""
    now: float = 0.0
    ended: bool = True
    """Nothing of the run is alive; else its newest attempt is, until ``now``."""
    pending: bool = False
    """The newest job waits in the queue."""


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


def account(records: GoodputRecords) -> Goodput:
    """What every microsecond of a run's allocations was spent on."""
    times = attempt_times(records)
    wall = dict.fromkeys(Category, 0)
    ranks = dict.fromkeys(Category, 0)
    for _, _, ledger in booked(records):
        for name in Category:
            wall[name] += ledger.wall[name]
            ranks[name] += ledger.ranks[name]
    return Goodput(
        wall,
        ranks,
        queued_us(records, times),
        attempts=len(times),
        gpus=on_gpus(records.events),
    )


def booked(
    records: GoodputRecords, *, stretches: bool = False
) -> Iterator[tuple[Allocation, list[AttemptTime], Ledger]]:
    """Every allocation of a run, its attempts, and what its time was spent on."""
    times = attempt_times(records)
    stories = _by_attempt(records.events)
    kept = _Kept.of(times, stories, ended=records.ended)
    for span, members in allocations(records, times):
        wall, ranks = dict.fromkeys(Category, 0), dict.fromkeys(Category, 0)
        ledger = Ledger(span.started_us, span.ended_us, wall, ranks)
        ledger.stretches = [] if stretches else None
        ledger.capacity = members[0].capacity if members else _capacity(times)
        ledger.number = members[0].attempt if members else 0
        ledger.category = Category.STARTUP if members else Category.UNEXPLAINED
        for one in members:
            _tell(ledger, one, stories.get(one.attempt, []), kept)
        ledger.close()
        yield span, members, ledger


_PHASES = {
    Phase.IMPORT: Category.STARTUP,
    Phase.RENDEZVOUS: Category.STARTUP,
    Phase.DATA: Category.STARTUP,
    Phase.BUILD: Category.STARTUP,
    Phase.LOAD: Category.STARTUP,
    Phase.FIRST_STEP: Category.PRODUCTIVE,
    Phase.STEP: Category.PRODUCTIVE,
    Phase.VALIDATE: Category.VALIDATION,
    Phase.SAVE: Category.SAVE,
    Phase.EXPORT: Category.EXPORT,
    Phase.EXIT: Category.WAITING,
}
_PROGRESS = frozenset(
    {Kind.PHASE, Kind.STEP, Kind.VALIDATION, Kind.RESUME, Kind.SETUP, Kind.EXPORT, Kind.START}
)
"""Events of rank 0's main thread: each one ends a piece of work, or begins one."""
_OVER = frozenset({Kind.STOPPED, Kind.FINISH})


def _tell(ledger: Ledger, one: AttemptTime, story: Sequence[Event], kept: _Kept) -> None:
    """Book one attempt by what rank 0 recorded of it."""
    ledger.attempt(one.started_us, one)
    last_us, last_step, over = one.started_us, None, False
    restored = any(event["kind"] == Kind.RESUME for event in story)
    for index, event in enumerate(story):
        kind, t_us, step = event["kind"], time_us(event), event.get("step")
        if t_us is None or over:
            continue
        if kind in _PROGRESS:
            last_us = max(last_us, min(t_us, one.ended_us))
        if kind in (Kind.STEP, Kind.PHASE) and isinstance(step, int):
            if ledger.category is Category.PRODUCTIVE:
                _step(ledger, event, kept.thrown(one.attempt, index, last_step, step))
            last_step = step
        if kind == Kind.PHASE:
            ledger.mark(t_us, _category(event, restored=restored))
        elif kind in _OVER:
            over = True
            ledger.mark(t_us, Category.WAITING)
    if not over:
        _cut_off(ledger, one, story, last_us=last_us)
    if one.ended and one.cause != "lost":
        ledger.attempt(one.ended_us, None)


def _category(event: Event, *, restored: bool) -> Category:
    try:
        phase = Phase(str(event.get("phase")))
    except ValueError:
        return Category.UNEXPLAINED
    if phase is Phase.LOAD and restored:
        return Category.RESTORE
    return _PHASES[phase]


def _step(ledger: Ledger, event: Event, thrown: float) -> None:
    """Book the time up to the end of a step; ``thrown``: share of it whose result was dropped.

    The ledger stands at the end of the step before, or at the phase's begin: of several steps
    between two logged ones each is taken to be equally long.
    """
    end_us = time_us(event) or ledger.at_us
    begin_us = min(ledger.at_us, end_us)
    if thrown > 0:
        kept_us = int((end_us - begin_us) * (1.0 - thrown))
        ledger.mark(begin_us + kept_us, Category.RECOMPUTED)
    else:
        step_us, wait_us = (us_of(event.get(name)) for name in ("step_s", "data_wait_s"))
        waits_from = max(begin_us, end_us - step_us)
        ledger.mark(waits_from, Category.DATA_WAIT)
        ledger.mark(min(end_us, waits_from + wait_us), Category.PRODUCTIVE)
    ledger.mark(end_us, Category.PRODUCTIVE)


def _cut_off(ledger: Ledger, one: AttemptTime, story: Sequence[Event], *, last_us: int) -> None:
    """Book what came after the last progress of an attempt that neither stopped nor finished."""
    if one.ended:
        # The open piece of work was not booked yet: only its name changes.
        stalled = one.cause == "hung"
        ledger.mark(last_us, Category.STALLED if stalled else Category.LOST)
        return
    # It lives: what it does counts until its last sign of life, silence does not.
    signs = [t for event in story if (t := time_us(event)) is not None]
    ledger.mark(max([last_us, *signs]), Category.UNEXPLAINED)


@dataclass(frozen=True)
class _Kept:
    """From which step training went on, each time it did, in order."""

    resumed: tuple[tuple[int, int, int], ...]
    """Attempt, index of the event in its story, step."""

    @classmethod
    def of(
        cls, times: Iterable[AttemptTime], stories: dict[int, list[Event]], *, ended: bool
    ) -> _Kept:
        resumed: list[tuple[int, int, int]] = []
        saved, newest = 0, max(stories, default=0)
        for attempt in sorted(stories):
            for index, event in enumerate(stories[attempt]):
                step = event.get("step")
                if not isinstance(step, int):
                    continue
                begins = event["kind"] == Kind.PHASE and event.get("phase") == Phase.FIRST_STEP
                if begins or event["kind"] == Kind.RESUME:
                    resumed.append((attempt, index, step))
                elif event["kind"] == Kind.CHECKPOINT:
                    saved = max(saved, step)
        last = next((one for one in times if one.attempt == newest), None)
        finished = any(event["kind"] == Kind.FINISH for event in stories.get(newest, ()))
        if (ended or (last is not None and last.ended)) and not finished:
            # Whoever goes on goes on from the newest checkpoint.
            resumed.append((newest + 1, 0, saved))
        return cls(tuple(resumed))

    def thrown(self, attempt: int, index: int, before: int | None, step: int) -> float:
        """Share of the steps after ``before`` up to ``step`` that a later resume dropped."""
        later = [at for *where, at in self.resumed if tuple(where) > (attempt, index)]
        first = before if before is not None and before < step else step - 1
        goes_on = min(later, default=step)
        return max(0, step - max(first, goes_on)) / (step - first)


def _by_attempt(events: Iterable[Event]) -> dict[int, list[Event]]:
    stories: dict[int, list[Event]] = {}
    for event in events:
        if isinstance(event.get("attempt"), int):
            stories.setdefault(event["attempt"], []).append(event)
    return stories


def _capacity(times: Sequence[AttemptTime]) -> int:
    return max((one.capacity for one in times), default=1)


def on_gpus(events: Iterable[Event]) -> bool:
    """Whether a rank of this run is a GPU."""
    return any(event["kind"] == Kind.SETUP and event.get("backend") == "nccl" for event in events)


_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))


def headline(goodput: Goodput) -> str:
    """``effective 91.3 % of 3 h 12 min allocated``; empty before the first allocation."""
    if goodput.effective is None:
        return ""
    queued = f", {span(goodput.queued_us)} queued" if goodput.queued_us >= 1_000_000 else ""
    return (
        f"effective {goodput.effective:.1%} of {span(goodput.allocated_us)} allocated{queued}"
    ).replace("%", " %")


def rows(goodput: Goodput) -> list[tuple[str, str]]:
    """Each category that took time, the largest first: its name, and share, time, rank time."""
    unit = "GPU" if goodput.gpus else "rank"
    total = goodput.allocated_rank_us
    ordered = sorted(Category, key=lambda name: -goodput.rank_us[name])
    return [
        (
            str(name).replace("_", " "),
            f"{100 * goodput.rank_us[name] / total:5.1f} %  {span(goodput.wall_us[name])}, "
            f"{goodput.rank_us[name] / 3.6e9:.2f} {unit} hours",
        )
        for name in ordered
        if goodput.rank_us[name]
    ]


def span(microseconds: int) -> str:
    """A duration by its two largest units: ``3 h 12 min``, ``41 s``, ``0.20 s``."""
    seconds = microseconds / 1e6
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.2f} s"
    for place, (size, unit) in enumerate(_UNITS):
        if seconds >= size:
            whole, rest = divmod(int(seconds), size)
            lower, name = _UNITS[place + 1] if place + 1 < len(_UNITS) else (1, "s")
            return f"{whole} {unit} {rest // lower} {name}"
    raise AssertionError(seconds)


_HEARTBEAT, _SAMPLES, _START = (
    f'"kind":"{kind}"'.encode() for kind in ("heartbeat", "samples", "start")
)
_SEPARATOR = "\x1f"
_FIELDS = "JobIDRaw,Start,End"


def read_goodput(
    folder: Path, *, ended: bool, pending: bool = False, run: Ask | None = ask
) -> Goodput:
    """The account of the run in a folder, as of now; ``run`` None asks no scheduler."""
    run_dir = RunDir(folder)
    submissions = tuple(read_events(run_dir.submissions))
    slurm = [str(line.get("job_id")) for line in submissions if line.get("cluster") == "slurm"]
    return account(
        GoodputRecords(
            attempts=tuple(read_events(run_dir.attempts)),
            events=tuple(rank_events(run_dir.events(0))),
            submissions=submissions,
            jobs=tuple(job_spans(slurm, run=run)) if run is not None and slurm else (),
            now=time.time(),
            ended=ended,
            pending=pending,
        )
    )


def rank_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a rank without samples, and of the heartbeats only each attempt's last one.

    Most lines are not even parsed, so that a long run's file is read in seconds.
    """
    beat = b""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if _HEARTBEAT in line:
                beat = line
                continue
            if _SAMPLES in line:
                continue
            if _START in line:
                yield from _parsed(beat)
                beat = b""
            yield from _parsed(line)
    yield from _parsed(beat)


def _parsed(line: bytes) -> Iterator[dict[str, Any]]:
    event = parse_event(line)
    if event is not None:
        yield event


def job_spans(job_ids: Sequence[str], *, run: Ask = ask) -> list[Span]:
    """Every allocation of these jobs by sacct, requeues included; nothing without accounting.

    ``--duplicates`` is what makes sacct(1) show a requeued job's earlier stretches.
    """
    command = ["sacct", "-X", "--duplicates", "-P", "-n", f"--delimiter={_SEPARATOR}"]
    answer = run([*command, f"--format={_FIELDS}", f"--jobs={','.join(job_ids)}"])
    return list(_spans(answer.out.splitlines())) if answer.code == 0 else []


def _spans(lines: Iterable[str]) -> Iterator[Span]:
    for line in lines:
        job_id, started, ended = [*line.split(_SEPARATOR), "", ""][:3]
        start_s, end_s = epoch_s(started), epoch_s(ended)
        if start_s is not None and (end_s is None or end_s > start_s):
            yield Span(job_id, round(start_s * 1e6), None if end_s is None else round(end_s * 1e6))
