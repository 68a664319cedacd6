"""The price table: what an hour of a GPU, a core or a rank costs where and when. Pure.

currency: EUR
prices:
  - {gpu: h100, partition: fast, from: 2026-01-01, until: 2026-07-01, per_gpu_hour: 2.10}
  - {per_core_hour: 0.01}

``gpu`` (type), ``partition`` and ``qos`` narrow a price; days are UTC, ``until`` is not included.
Of several that fit, the one that names most holds; of equals the first. Nothing is ever guessed.

Sums charges up by group; what is not priced is never taken for free. Pure.

Money is exact: a sum of price x unit-microseconds, divided only where it is shown.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime
from decimal import ROUND_HALF_EVEN, Context, Decimal, Inexact, InvalidOperation
from enum import StrEnum
from itertools import combinations
from typing import Any

import yaml

from submitrain.errors import UserError
from submitrain.monitor.accounting.charges import Charge, Holding, Unit
from submitrain.monitor.accounting.time import Category

_UNITS = {"per_gpu_hour": Unit.GPU, "per_core_hour": Unit.CORE, "per_rank_hour": Unit.RANK}
_WHERE = ("gpu", "partition", "qos")
_KEYS = {*_WHERE, "from", "until", *_UNITS}
_EVER_US = 2**62


@dataclass(frozen=True)
class Price:
    """One line of the table; ``where`` holds what it is narrowed to."""

    unit: Unit
    per_hour: Decimal
    where: tuple[tuple[str, str], ...] = ()
    from_us: int = 0
    until_us: int = _EVER_US


@dataclass(frozen=True)
class PriceTable:
    """All prices, in one currency."""

    prices: tuple[Price, ...] = ()
    currency: str = ""

    @property
    def days_us(self) -> frozenset[int]:
        """When any price changes."""
        return frozenset(time for one in self.prices for time in (one.from_us, one.until_us))

    def per_hour(self, holding: Holding, *, partition: str, qos: str, at_us: int) -> Decimal | None:
        """Price of one unit for an hour; None where the table has none."""
        place = {"gpu": holding.gpu, "partition": partition.lower(), "qos": qos.lower()}
        fits = [
            one
            for one in self.prices
            if one.unit is holding.unit
            and one.from_us <= at_us < one.until_us
            and all(place[key] == value for key, value in one.where)
        ]
        best = max(fits, key=lambda one: len(one.where), default=None)
        return best.per_hour if best is not None else None


def parse_prices(text: str, name: str) -> PriceTable:
    """The table of a YAML text; numbers are read as they are written, never as floats.

    Raises:
        UserError: something in it is wrong; the message says which line of the table.
    """
    try:
        value = yaml.load(text, Loader=yaml.BaseLoader)
    except yaml.YAMLError as error:
        raise UserError(f"{name}: expected YAML, got {' '.join(str(error).split())}") from error
    if not isinstance(value, dict) or not isinstance(value.get("prices"), list):
        raise UserError(f"{name}: expected a mapping with a list of prices, got none")
    if unknown := set(value) - {"currency", "prices"}:
        raise UserError(f"{name}: {min(unknown)}: unknown key; allowed are currency and prices")
    prices = []
    for number, line in enumerate(value["prices"]):
        prices.append(_price(line, f"{name}: prices[{number}]"))
    for (i, one), (j, other) in combinations(enumerate(prices), 2):
        if _same(one, other):
            raise UserError(
                f"{name}: prices[{j}]: expected a price for other days than prices[{i}], got the "
                "same conditions on overlapping days; set from and until"
            )
    return PriceTable(tuple(prices), str(value.get("currency") or ""))


def _price(line: object, where: str) -> Price:
    if not isinstance(line, Mapping):
        raise UserError(f"{where}: expected a mapping, got {line!r}")
    if unknown := set(line) - _KEYS:
        raise UserError(
            f"{where}.{min(unknown)}: unknown key; allowed are {', '.join(sorted(_KEYS))}"
        )
    units = [key for key in _UNITS if key in line]
    if len(units) != 1:
        raise UserError(f"{where}: expected one of {', '.join(_UNITS)}, got {len(units)}")
    from_us = _day_us(line, "from", where, 0)
    until_us = _day_us(line, "until", where, _EVER_US)
    if until_us <= from_us:
        raise UserError(f"{where}.until: expected a day after from, got {line['until']}")
    named = tuple((key, str(line[key]).lower()) for key in _WHERE if line.get(key))
    return Price(_UNITS[units[0]], _amount(line[units[0]], where), named, from_us, until_us)


def _amount(value: object, where: str) -> Decimal:
    try:
        amount = Decimal(str(value))
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0 or len(amount.as_tuple().digits) > 12:
        raise UserError(f"{where}: expected an amount >= 0 such as 2.10, got {value}")
    return amount


def _day_us(line: Mapping[str, Any], key: str, where: str, otherwise: int) -> int:
    if key not in line:
        return otherwise
    return day_us(str(line[key]), f"{where}.{key}")


def day_us(text: str, where: str) -> int:
    """Begin of a UTC day in microseconds since the epoch.

    Raises:
        UserError: it is none.
    """
    try:
        day = date.fromisoformat(text)
    except ValueError as error:
        raise UserError(f"{where}: expected a day such as 2026-01-31, got {text}") from error
    return round(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def _same(one: Price, other: Price) -> bool:
    conditions = (one.unit, one.where) == (other.unit, other.where)
    return conditions and one.from_us < other.until_us and other.from_us < one.until_us


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
