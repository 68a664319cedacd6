"""A table described once: shown on the terminal and on pages."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from markupsafe import Markup

if TYPE_CHECKING:
    from rich.table import Table as TerminalTable

SIGNS = {"good": "✓", "bad": "✗", "warn": "●"}
"""Styles that can be told without colours too."""
_RICH = {"good": "green", "bad": "red", "warn": "yellow", "faint": "dim", "strong": "bold"}


@dataclass(frozen=True)
class Cell:
    """Text that is not plain: ``style`` is a key of ``SIGNS``, faint, strong, code or when."""

    text: str
    style: str = ""
    note: str = ""
    """A paler second line; on pages only."""


Row = Mapping[str, str | Cell]
"""Cells by the name of their column."""


@dataclass(frozen=True)
class Table:
    """Rows below names of columns; names are unique."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str | Cell]]
    numbers: Collection[str] = ()
    """Columns that are set to the right."""
    left_out: int = 0
    """Earlier rows that are not shown."""

    @classmethod
    def of(cls, rows: Sequence[Row], *, numbers: Collection[str] = ()) -> Table:
        """A table of rows that all have the same columns, by name; at least one row."""
        return cls(list(rows[0]), [list(row.values()) for row in rows], numbers)

    def without(self, *names: str) -> Table:
        """The same table with fewer columns."""
        kept = [index for index, name in enumerate(self.columns) if name not in names]
        rows = [[row[index] for index in kept] for row in self.rows]
        return replace(self, columns=[self.columns[index] for index in kept], rows=rows)

    def attributes(self, name: str) -> Markup:
        """What a page writes into the tag of each cell of a column."""
        return Markup(' class="number"' if name in self.numbers else "")

    def on_terminal(self) -> TerminalTable:
        """The table for a console."""
        from rich.table import Table as TerminalTable
        from rich.text import Text

        shown = TerminalTable(box=None, header_style="bold", pad_edge=False, padding=(0, 2, 0, 0))
        for name in self.columns:
            right = name in self.numbers
            shown.add_column(name, justify="right" if right else "left", overflow="fold")
        for row in self.rows:
            cells = [one if isinstance(one, Cell) else Cell(one) for one in row]
            shown.add_row(
                *(
                    Text(f"{SIGNS.get(one.style, '')} {one.text}".strip(), _RICH.get(one.style, ""))
                    for one in cells
                )
            )
        return shown
