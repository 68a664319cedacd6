"""Sums charges up by group; what is not priced is never taken for free. Pure.

Money is exact: a sum of price x unit-microseconds, divided only where it is shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact
from enum import StrEnum

from monitor.cost.charges import Charge
from monitor.cost.prices import PriceTable
from monitor.cost.tres import Unit
from monitor.ledger import Category

HOUR_US = 3_600_000_000
_EXACT = Context(prec=60, traps=[Inexact])
_CENT = Decimal("0.01")


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
        return (self.price_us / HOUR_US).quantize(_CENT, ROUND_HALF_EVEN)

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
    until_us: int = 2**62,
) -> Bill:
    """Group what was held in the window ``since_us`` <= t < ``until_us``."""
    rows: dict[tuple[str, Unit], Row] = {}
    totals: dict[Unit, Row] = {}
    edges = {*prices.days_us, since_us, until_us}
    for charge in charges:
        for piece in _pieces(charge, edges, months=by is By.MONTH):
            if not since_us <= piece.started_us < until_us:
                continue
            labels, unit = piece.labels, piece.holding.unit
            price = prices.per_hour(
                piece.holding,
                partition=labels.partition,
                qos=labels.qos,
                at_us=piece.started_us,
            )
            group = _month(piece.started_us) if by is By.MONTH else str(getattr(labels, by))
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


def _month(t_us: int) -> str:
    return datetime.fromtimestamp(t_us // 1_000_000, UTC).strftime("%Y-%m")
