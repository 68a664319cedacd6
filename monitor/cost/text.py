"""A bill as a table, CSV or JSON. Pure."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from decimal import Decimal
from io import StringIO
from typing import Any

from monitor.cost.bill import HOUR_US, Bill, Row
from monitor.ledger import Category

UNPRICED = "unpriced"
_SMALLEST = Decimal("0.000001")


def as_table(bill: Bill) -> str:
    """Groups and their total, then where the total went."""
    heading = [str(bill.by), "unit", "hours", "cost", "productive", "wasted", "attempts"]
    heading += ["jobs", "requeues"]
    rows = [_cells(row, bill.currency) for row in (*bill.rows, *bill.totals)]
    parts = [_aligned([heading, *rows], left=2)]
    for total in bill.totals:
        parts.append(f"\nwhere the {total.unit} hours went\n")
        parts.append(_split([(str(name), us) for name, us in total.split_us.items()], total))
        if total.wasted_us:
            parts.append(f"\n{total.unit} hours wasted, by cause\n")
            parts.append(_split(list(total.wasted_us.items()), total))
    return "".join(parts)


def as_csv(bill: Bill) -> str:
    """One line a group and unit; the total is left to the reader's sum."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    causes = sorted({cause for row in bill.rows for cause in row.wasted_us})
    heading = [str(bill.by), "unit", "hours", "cost", "currency", "unpriced_hours", "attempts"]
    heading += ["jobs", "requeues", *(f"{name}_hours" for name in Category)]
    writer.writerow([*heading, *(f"wasted_{cause}_hours" for cause in causes)])
    for row in bill.rows:
        money = UNPRICED if row.money is None else row.money
        counts = [row.attempts, row.allocations - row.requeues, row.requeues]
        split = [hours(row.split_us[name]) for name in Category]
        wasted = [hours(row.wasted_us.get(cause, 0)) for cause in causes]
        first = [row.group, row.unit, hours(row.used_us), money, bill.currency]
        writer.writerow([*first, hours(row.unpriced_us), *counts, *split, *wasted])
    return file.getvalue()


def as_json(bill: Bill) -> str:
    """All of it; hours and money are strings, so that no digit is lost."""
    value = {
        "by": str(bill.by),
        "currency": bill.currency or None,
        "groups": [_plain(row) for row in bill.rows],
        "totals": [_plain(row) for row in bill.totals],
    }
    return json.dumps(value, indent=2) + "\n"


def hours(units_us: int) -> str:
    """Unit-hours to a millionth: 4 ms."""
    return str((Decimal(units_us) / HOUR_US).quantize(_SMALLEST))


def money(row: Row, currency: str) -> str:
    """``12.30 EUR``; what has no price is said, and never counted as 0."""
    if row.money is None:
        return UNPRICED
    text = f"{row.money} {currency}".rstrip()
    if not row.unpriced_us:
        return text
    return f"{text} + {row.unpriced_us / HOUR_US:.2f} h {UNPRICED}"


def _cells(row: Row, currency: str) -> list[str]:
    used, productive = row.used_us, row.split_us[Category.PRODUCTIVE]
    share = f"{100 * productive / used:.1f} %" if used else "-"
    wasted = f"{sum(row.wasted_us.values()) / HOUR_US:.2f}"
    counts = (row.attempts, row.allocations - row.requeues, row.requeues)
    cost = money(row, currency)
    return [
        *(row.group, str(row.unit), f"{used / HOUR_US:.2f}", cost, share, wasted),
        *(str(count) for count in counts),
    ]


def _split(parts: list[tuple[str, int]], total: Row) -> str:
    rows = [
        ["", name.replace("_", " "), f"{us / HOUR_US:.2f}", f"{100 * us / total.used_us:.1f} %"]
        for name, us in sorted(parts, key=lambda one: -one[1])
        if us
    ]
    return _aligned(rows, left=2) if rows else ""


def _aligned(rows: Sequence[Sequence[str]], *, left: int) -> str:
    """Rows as text; the first ``left`` columns hold words, the others numbers."""
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    lines = []
    for row in rows:
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [cell.ljust(w) if place < left else cell.rjust(w) for place, (cell, w) in pairs]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines) + "\n"


def _plain(row: Row) -> dict[str, Any]:
    return {
        "group": row.group,
        "unit": str(row.unit),
        "hours": hours(row.used_us),
        "unit_us": row.used_us,
        "cost": None if row.money is None else str(row.money),
        "unpriced_hours": hours(row.unpriced_us),
        "attempts": row.attempts,
        "jobs": row.allocations - row.requeues,
        "requeues": row.requeues,
        "split_hours": {str(name): hours(us) for name, us in row.split_us.items()},
        "wasted_hours": {cause: hours(us) for cause, us in sorted(row.wasted_us.items())},
    }
