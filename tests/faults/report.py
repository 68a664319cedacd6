"""The matrix as a table for people."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from tests.faults.judge import Verdict

COLUMNS = (
    "row",
    "injected",
    "classified as",
    "action",
    "recovery",
    "recomputed",
    "identical",
    "verdict",
)


def table_of(verdicts: Sequence[Verdict]) -> Table:
    """One line per row."""
    table = Table(*COLUMNS, title=f"{len(verdicts)} rows", show_lines=False)
    for one in verdicts:
        table.add_row(
            f"{one.course}/{one.row}",
            one.injected,
            one.cause,
            one.action,
            "" if one.recovery_s is None else f"{one.recovery_s:.1f} s",
            "" if one.recomputed is None else f"{one.recomputed} steps",
            "yes" if one.identical else "NO",
            "FAILED" if one.problems else "ok",
        )
    return table


def print_report(verdicts: Sequence[Verdict]) -> None:
    """The table, what the supervisor said in each row, and every problem in full."""
    console = Console(width=170, highlight=False)
    console.print(table_of(verdicts))
    for one in verdicts:
        if one.explanation:
            console.print(f"{one.course}/{one.row}: {one.explanation}", markup=False)
    for one in verdicts:
        for problem in one.problems:
            console.print(f"FAILED {one.course}/{one.row}: {problem}", markup=False)
