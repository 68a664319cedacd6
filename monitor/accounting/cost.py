"""What runs cost: hours held x prices, summed up by user, account, month and so on. Pure.

Hours are whole unit-microseconds and money is exact: what is split here adds up exactly, and is
divided only where it is shown. What has no price is never taken for free.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from enum import StrEnum

from submitrain.attempts import Cause
from submitrain.monitor.accounting.goodput import on_gpus
from submitrain.monitor.accounting.prices import EVER_US, Holding, PriceTable, Unit, holdings_of
from submitrain.monitor.accounting.records import RunRecords, SacctJob
from submitrain.monitor.accounting.timeline import Category, Stretch, book

HOUR_US = 3_600_000_000
NOBODY = "(none)"
_EXACT = Context(prec=60, traps=[Inexact])
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

    def of_job(self, job: SacctJob) -> Labels:
        """The same where Slurm's accounting says nothing else."""
        named = {"user": job.user, "account": job.account, "project": job.wckey}
        named |= {"partition": job.partition, "qos": job.qos}
        return replace(self, **{key: value for key, value in named.items() if value})


@dataclass(frozen=True)
class RunUsage:
    """What the charges of one run rest on."""

    labels: Labels
    """Of allocations that the accounting does not know."""
    records: RunRecords
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


def charges_of(run: RunUsage) -> list[Charge]:
    """All charges of a run, every attempt and requeue included."""
    causes = _causes(run.records)
    gpus = on_gpus(run.records.events)
    seen: set[str] = set()
    charges: list[Charge] = []
    for allocation, stretches in book(run.records):
        job = allocation.sacct
        labels = run.labels.of_job(job) if job is not None else run.labels
        held = holdings_of(job.tres) if job is not None else ()
        by_sacct = bool(held) and (held[0].unit is Unit.GPU or not gpus)
        if not by_sacct:
            # Ranks are counted by what the attempt of the moment has room for: a site may not
            # account for GPUs.
            held = (Holding(Unit.GPU, 0, run.gpu_type) if gpus else Holding(Unit.RANK, 0),)
        for holding in held:
            for one in stretches:
                count = holding.count if by_sacct else one.capacity
                started_us, ended_us = _counted(one, job)
                charges.append(
                    Charge(
                        labels,
                        replace(holding, count=count),
                        started_us,
                        ended_us,
                        one.category,
                        _wasted(one.category, *causes.get(one.attempt, ("", ""))),
                        spare=one.capacity - one.busy,
                        of=one.capacity,
                    )
                )
        begin, again = allocation.started_us, int(allocation.job_id in seen)
        seen.add(allocation.job_id)
        charges.append(Charge(labels, held[0], begin, begin, allocations=1, requeues=again))
        for attempt in allocation.attempts:
            begin = attempt.started_us
            charges.append(Charge(labels, held[0], begin, begin, attempts=1))
    return charges


def _wasted(category: Category, own: str, before: str) -> str:
    """The cause that time was wasted for; empty when it was not wasted."""
    if category in _LOST_WORK:
        return own or "unknown"
    if category is Category.WAITING:
        return "" if own == Cause.FINISHED else own
    return before if category in _STARTING else ""


def _causes(records: RunRecords) -> dict[int, tuple[str, str]]:
    """Attempt to why it ended, and why the one before it did."""
    causes = {one.number: str(one.cause or Cause.LOST) for one in records.attempts}
    if not records.ended and records.attempts and records.attempts[-1].cause is None:
        causes[records.attempts[-1].number] = "running"
    numbers = sorted(causes)
    before = ["", *(causes[number] for number in numbers)]
    return {number: (causes[number], before[place]) for place, number in enumerate(numbers)}


def _counted(one: Stretch, job: SacctJob | None) -> tuple[int, int]:
    """Begin and end of a stretch as far as the accounting counts it: it knows whole seconds."""
    if job is None:
        return one.started_us, one.ended_us
    last = one.ended_us if job.ended_us is None else job.ended_us
    begin = min(max(one.started_us, job.started_us), max(last, job.started_us))
    return begin, max(begin, min(one.ended_us, last))


class By(StrEnum):
    """What runs are grouped by."""

    RUN = "run"
    USER = "user"
    ACCOUNT = "account"
    PROJECT = "project"
    PARTITION = "partition"
    MONTH = "month"


@dataclass
class Row:
    """What one group used of one unit, in whole unit-microseconds."""

    group: str
    unit: Unit
    split_us: dict[Category, int] = field(default_factory=lambda: dict.fromkeys(Category, 0))
    wasted_us: dict[str, int] = field(default_factory=dict)
    """By the cause for which an attempt ended."""
    unpriced_us: int = 0
    price_us: Decimal = Decimal(0)
    """Sum of price per hour x unit-microseconds."""
    attempts: int = 0
    allocations: int = 0
    requeues: int = 0

    @property
    def used_us(self) -> int:
        """All of it."""
        return sum(self.split_us.values())

    @property
    def money(self) -> Decimal | None:
        """What the priced part cost, to the cent; None when nothing of it has a price."""
        if self.unpriced_us >= self.used_us:
            return None
        return (self.price_us / HOUR_US).quantize(Decimal("0.01"), ROUND_HALF_EVEN)

    def take(self, charge: Charge, per_hour: Decimal | None) -> None:
        """Add a charge."""
        for category, units_us in charge.shares():
            self.split_us[category] += units_us
            if charge.cause and category is not Category.SPARE:
                before = self.wasted_us.get(charge.cause, 0)
                self.wasted_us[charge.cause] = before + units_us
            if per_hour is None:
                self.unpriced_us += units_us
            else:
                amount = _EXACT.multiply(per_hour, Decimal(units_us))
                self.price_us = _EXACT.add(self.price_us, amount)
        self.attempts += charge.attempts
        self.allocations += charge.allocations
        self.requeues += charge.requeues


@dataclass(frozen=True)
class Bill:
    """Rows by group and unit, and their sums by unit."""

    by: By
    rows: tuple[Row, ...]
    totals: tuple[Row, ...]
    currency: str = ""


def make_bill(
    charges: Iterable[Charge],
    prices: PriceTable,
    by: By,
    *,
    since_us: int = 0,
    until_us: int = EVER_US,
) -> Bill:
    """Group what was held in the window ``since_us`` <= t < ``until_us``."""
    rows: dict[tuple[str, Unit], Row] = {}
    totals: dict[Unit, Row] = {}
    edges = {since_us, until_us, *(one.from_us for one in prices.prices)}
    edges |= {one.until_us for one in prices.prices}
    for charge in charges:
        for piece in _pieces(charge, edges, months=by is By.MONTH):
            if not since_us <= piece.started_us < until_us:
                continue
            labels, unit = piece.labels, piece.holding.unit
            where = {"partition": labels.partition, "qos": labels.qos}
            price = prices.per_hour(piece.holding, **where, at_us=piece.started_us)
            if by is By.MONTH:
                day = datetime.fromtimestamp(piece.started_us // 1_000_000, UTC)
                group = day.strftime("%Y-%m")
            else:
                group = str(getattr(labels, by))
            rows.setdefault((group, unit), Row(group, unit)).take(piece, price)
            totals.setdefault(unit, Row("total", unit)).take(piece, price)
    ordered = tuple(rows[key] for key in sorted(rows))
    return Bill(by, ordered, tuple(totals[unit] for unit in sorted(totals)), prices.currency)


def _pieces(charge: Charge, edges: set[int], *, months: bool) -> Iterator[Charge]:
    """The charge, cut where a price, the window or a month begins or ends."""
    cuts = sorted(edges | (set(_months(charge)) if months else set()))
    begin = charge.started_us
    if charge.ended_us == begin:
        yield charge
    for cut in cuts[bisect_right(cuts, begin) :]:
        if cut >= charge.ended_us:
            break
        yield replace(charge, started_us=begin, ended_us=cut)
        begin = cut
    if begin < charge.ended_us:
        yield replace(charge, started_us=begin)


def _months(charge: Charge) -> Iterator[int]:
    """Begins of the months within a charge."""
    day = datetime.fromtimestamp(charge.started_us // 1_000_000, UTC)
    year, month = day.year, day.month
    while True:
        year, month = (year + 1, 1) if month == 12 else (year, month + 1)
        at_us = round(datetime(year, month, 1, tzinfo=UTC).timestamp()) * 1_000_000
        if at_us >= charge.ended_us:
            return
        yield at_us
