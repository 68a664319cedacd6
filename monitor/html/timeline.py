"""Stretches of time below each other on one axis, as inline SVG. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from monitor.html.axis import tick_text, ticks

WIDTH = 1000
_LEFT, _RIGHT, _TOP, _ROW, _BAR = 110, 240, 8, 26, 16
_UNITS = ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))


@dataclass(frozen=True)
class Stretch:
    """One row; seconds since the first start."""

    name: str
    start_s: float
    end_s: float
    label: str
    color: str
    """A colour of the page: ``good``, ``bad``, ``warn``, ``c0`` .. ``c9``."""


def timeline(rows: Sequence[Stretch], *, title: str) -> str:
    """All stretches; empty text without one. ``title`` is for screen readers."""
    if not rows:
        return ""
    longest = max(1e-3, *(row.end_s for row in rows))
    _, size, unit = next(entry for entry in _UNITS if longest >= entry[0])
    axis = [tick for tick in ticks(0.0, longest / size, about=7) if tick >= 0]
    scale = (WIDTH - _LEFT - _RIGHT) / axis[-1] / size
    bottom = _TOP + _ROW * len(rows)
    parts = [
        f'<line class="axis" x1="{_LEFT + tick * size * scale:.1f}" y1="{_TOP}" '
        f'x2="{_LEFT + tick * size * scale:.1f}" y2="{bottom}"/>'
        f'<text class="faint" x="{_LEFT + tick * size * scale:.1f}" y="{bottom + 16}" '
        f'text-anchor="middle">{tick_text(tick)}{f" {unit}" if tick == axis[-1] else ""}</text>'
        for tick in axis
    ]
    parts += [_row(row, _TOP + index * _ROW, scale) for index, row in enumerate(rows)]
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 24}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _row(row: Stretch, top: float, scale: float) -> str:
    x, y = _LEFT + row.start_s * scale, top + (_ROW - _BAR) / 2
    width = max(2.0, (row.end_s - row.start_s) * scale)
    return (
        f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>'
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" '
        f'fill="var(--{row.color})"/>'
        f'<text x="{x + width + 6:.1f}" y="{y + 13}">{escape(row.label)}</text>'
    )
