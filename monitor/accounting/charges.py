"""Books every microsecond of a run's allocations to what it held then. Pure.

Sums are whole unit-microseconds: what is split here adds up exactly.

What an allocation holds, from Slurm's TRES text or a request for GPUs. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from submitrain.monitor.accounting.goodput import GoodputRecords, booked, on_gpus
from submitrain.monitor.accounting.time import Allocation, AttemptTime, Category, Span, Stretch


class Unit(StrEnum):
    """What is counted."""

    GPU = "GPU"
    CORE = "core"
    RANK = "rank"
    """Where neither GPUs nor the scheduler's count of CPUs are known."""


@dataclass(frozen=True)
class Holding:
    """So many of one unit; ``gpu`` is the GPU's type in lower case, where it is known."""

    unit: Unit
    count: int
    gpu: str = ""


def holdings_of(tres: str) -> tuple[Holding, ...]:
    """GPUs of an allocation by type, else its CPUs, from ``AllocTRES`` (sacct(1)).

    ``gres/gpu=N`` counts all GPUs and holds; only without it the typed ones are summed up.
    """
    counts = _counts(tres)
    typed = {
        name.partition(":")[2].lower(): count
        for name, count in counts.items()
        if name.startswith("gres/gpu:") and count
    }
    total = counts.get("gres/gpu", sum(typed.values()))
    if typed and sum(typed.values()) == total:
        return tuple(Holding(Unit.GPU, count, name) for name, count in sorted(typed.items()))
    if total:
        return (Holding(Unit.GPU, total, next(iter(typed)) if len(typed) == 1 else ""),)
    cores = counts.get("cpu", 0)
    return (Holding(Unit.CORE, cores),) if cores else ()


def requested_type(sbatch: Mapping[str, Any]) -> str:
    """The GPU type that a submission asked for: ``h100`` of ``h100:8`` or ``gpu:h100:8``."""
    for key in ("gpus_per_node", "gres"):
        for part in str(sbatch.get(key) or "").split(","):
            words = [word for word in part.split(":") if word not in ("gpu", "")]
            if words and not words[0].isdigit():
                return words[0].lower()
    return ""


def _counts(tres: str) -> dict[str, int]:
    counts = {}
    for part in tres.split(","):
        name, _, number = part.partition("=")
        match = re.fullmatch(r"(\d+)", number.strip())
        if match:
            counts[name.strip()] = int(match.group())
    return counts


NOBODY = "(none)"
FINISHED = "finished"
_LOST_WORK = frozenset({Category.RECOMPUTED, Category.STALLED, Category.LOST})
_STARTING = frozenset({Category.STARTUP, Category.RESTORE})


@dataclass(frozen=True)
class Labels:
    """Whom an allocation is charged to."""

    run: str
    user: str = NOBODY
    account: str = NOBODY
    project: str = NOBODY
    partition: str = NOBODY
    qos: str = NOBODY


@dataclass(frozen=True)
class JobFacts:
    """One allocation of a job as the scheduler's accounting has it."""

    span: Span
    holdings: tuple[Holding, ...]
    labels: Labels


@dataclass(frozen=True)
class RunFacts:
    """What the charges of one run rest on; ``records.jobs`` are the spans of ``jobs``."""

    labels: Labels
    """Of allocations that the accounting does not know."""
    records: GoodputRecords
    jobs: tuple[JobFacts, ...] = ()
    gpu_type: str = ""


@dataclass(frozen=True)
class Charge:
    """A stretch of time for which something was held."""

    labels: Labels
    holding: Holding
    started_us: int
    ended_us: int
    category: Category = Category.UNEXPLAINED
    cause: str = ""
    """Of wasted time: why an attempt ended; else empty."""
    spare: int = 0
    """Of ``of`` ranks that the allocation had room for, these were held in reserve."""
    of: int = 1
    attempts: int = 0
    """Attempts that began at this moment; such a charge takes no time."""
    allocations: int = 0
    requeues: int = 0
    """Allocations that a job got again."""

    def shares(self) -> Iterator[tuple[Category, int]]:
        """Unit-microseconds by category; they sum up to count x time exactly."""
        total = self.holding.count * (self.ended_us - self.started_us)
        spare = total * self.spare // self.of
        yield self.category, total - spare
        if spare:
            yield Category.SPARE, spare


def charges_of(run: RunFacts) -> list[Charge]:
    """All charges of a run, every attempt and requeue included."""
    causes = _causes(run)
    gpus = on_gpus(run.records.events)
    seen: set[str] = set()
    charges: list[Charge] = []
    for span, members, ledger in booked(run.records, stretches=True):
        job = _job(run.jobs, span)
        labels = job.labels if job is not None else run.labels
        stretches = [_within(one, job) for one in ledger.stretches or ()]
        again = span.job_id in seen
        seen.add(span.job_id)
        for place, holding in enumerate(_holdings(run, job, gpus=gpus, capacity=ledger.capacity)):
            base = Charge(labels, holding, span.started_us, span.started_us)
            charges.extend(_charge(base, one, causes, counted=job) for one in stretches)
            if place == 0:
                charges.append(replace(base, allocations=1, requeues=int(again)))
                charges.extend(_begins(base, one) for one in members)
    return charges


def _begins(base: Charge, one: AttemptTime) -> Charge:
    return replace(base, started_us=one.started_us, ended_us=one.started_us, attempts=1)


def _charge(
    base: Charge, one: Stretch, causes: dict[int, tuple[str, str]], *, counted: JobFacts | None
) -> Charge:
    held = base.holding
    if counted is None or held.count == 0:
        # Ranks are counted by what the attempt of the moment has room for.
        held = replace(held, count=one.capacity)
    own, before = causes.get(one.attempt, ("", ""))
    return replace(
        base,
        holding=held,
        started_us=one.started_us,
        ended_us=one.ended_us,
        category=one.category,
        cause=_wasted(one.category, own, before),
        spare=one.capacity - one.busy,
        of=one.capacity,
    )


def _wasted(category: Category, own: str, before: str) -> str:
    """The cause that time was wasted for; empty when it was not wasted."""
    if category in _LOST_WORK:
        return own or "unknown"
    if category is Category.WAITING:
        return "" if own == FINISHED else own
    return before if category in _STARTING else ""


def _causes(run: RunFacts) -> dict[int, tuple[str, str]]:
    """Attempt to why it ended, and why the one before it did."""
    causes: dict[int, str] = {}
    for event in run.records.attempts:
        number = event.get("attempt")
        if isinstance(number, int):
            ended = event["kind"] == "attempt_end"
            causes[number] = str(event.get("cause") or "") if ended else causes.get(number, "lost")
    if not run.records.ended and causes and causes[max(causes)] == "lost":
        causes[max(causes)] = "running"
    before, result = "", {}
    for number in sorted(causes):
        result[number] = (causes[number], before)
        before = causes[number]
    return result


def _holdings(
    run: RunFacts, job: JobFacts | None, *, gpus: bool, capacity: int
) -> tuple[Holding, ...]:
    """What the allocation held: by the accounting, else by the ranks it had room for."""
    if job is not None and job.holdings and (job.holdings[0].unit is Unit.GPU or not gpus):
        return job.holdings
    # A count of 0 stands for the ranks of the moment: a site may not account for GPUs.
    return (Holding(Unit.GPU, 0, run.gpu_type) if gpus else Holding(Unit.RANK, 0),)


def _job(jobs: Sequence[JobFacts], span: Allocation) -> JobFacts | None:
    """The accounting's allocation that shares most time with this one."""

    def shared(job: JobFacts) -> int:
        ended = span.ended_us if job.span.ended_us is None else job.span.ended_us
        return min(ended, span.ended_us) - max(job.span.started_us, span.started_us)

    own = [job for job in jobs if job.span.job_id == span.job_id and shared(job) >= 0]
    return max(own, key=shared, default=None)


def _within(one: Stretch, job: JobFacts | None) -> Stretch:
    """The stretch as far as the accounting counts it: it knows whole seconds only."""
    if job is None:
        return one
    last = one.ended_us if job.span.ended_us is None else job.span.ended_us
    begin = min(max(one.started_us, job.span.started_us), max(last, job.span.started_us))
    return replace(one, started_us=begin, ended_us=max(begin, min(one.ended_us, last)))
