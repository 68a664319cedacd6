"""What an allocation holds, and what an hour of it costs where and when: the price table. Pure.

    currency: EUR
    prices:
      - {gpu: h100, partition: fast, from: 2026-01-01, until: 2026-07-01, per_gpu_hour: 2.10}
      - {per_core_hour: 0.01}

``gpu`` (type), ``partition`` and ``qos`` narrow a price; days are UTC, ``until`` is not included.
Of several that fit, the one that names most holds; of equals the first. Nothing is ever guessed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from itertools import combinations
from typing import Any

import yaml

from submitrain.errors import UserError

EVER_US = 2**62


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
    pairs = (part.partition("=") for part in tres.split(","))
    counts = {name.strip(): int(n) for name, _, n in pairs if n.strip().isdecimal()}
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


_UNITS = {"per_gpu_hour": Unit.GPU, "per_core_hour": Unit.CORE, "per_rank_hour": Unit.RANK}
_NARROWED_BY = ("gpu", "partition", "qos")
_KEYS = {*_NARROWED_BY, "from", "until", *_UNITS}


@dataclass(frozen=True)
class Price:
    """One line of the table; ``where`` holds what it is narrowed to."""

    unit: Unit
    per_hour: Decimal
    where: tuple[tuple[str, str], ...] = ()
    from_us: int = 0
    until_us: int = EVER_US


@dataclass(frozen=True)
class PriceTable:
    """All prices, in one currency."""

    prices: tuple[Price, ...] = ()
    currency: str = ""

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
        conditions = (one.unit, one.where) == (other.unit, other.where)
        if conditions and one.from_us < other.until_us and other.from_us < one.until_us:
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
    from_us = day_us(str(line["from"]), f"{where}.from") if "from" in line else 0
    until_us = day_us(str(line["until"]), f"{where}.until") if "until" in line else EVER_US
    if until_us <= from_us:
        raise UserError(f"{where}.until: expected a day after from, got {line['until']}")
    named = tuple((key, str(line[key]).lower()) for key in _NARROWED_BY if line.get(key))
    try:
        amount = Decimal(str(line[units[0]]))
    except InvalidOperation:
        amount = Decimal(-1)
    if not amount.is_finite() or amount < 0 or len(amount.as_tuple().digits) > 12:
        raise UserError(f"{where}: expected an amount >= 0 such as 2.10, got {line[units[0]]}")
    return Price(_UNITS[units[0]], amount, named, from_us, until_us)


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
