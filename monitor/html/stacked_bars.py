"""Horizontal stacked bars on one axis of seconds, as inline SVG: where time went. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from monitor.html.axis import tick_text, ticks

WIDTH = 1000
_LEFT, _RIGHT, _TOP, _ROW, _BAR = 170, 70, 8, 32, 20
_LEGEND_ROW = 20
COLORS = 10


@dataclass(frozen=True)
class Bar:
    """One row: seconds by part, in order."""

    name: str
    seconds: Mapping[str, float]


def stacked_bars(bars: Sequence[Bar], *, title: str) -> str:
    """All bars below each other; empty text without a bar. ``title`` is for screen readers."""
    longest = max((sum(bar.seconds.values()) for bar in bars), default=0.0)
    if longest <= 0:
        return ""
    names = list(dict.fromkeys(part for bar in bars for part in bar.seconds))
    color = {name: index % COLORS for index, name in enumerate(names)}
    axis = [tick for tick in ticks(0.0, longest, about=8) if tick >= 0]
    scale = (WIDTH - _LEFT - _RIGHT) / axis[-1]
    bottom = _TOP + _ROW * len(bars)
    legend, height = _legend(color, bottom + 42)
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(title)}">'
            f"<title>{escape(title)}</title>",
            *_axis(axis, scale, bottom),
            *(_bar(bar, index, scale, color) for index, bar in enumerate(bars)),
            *legend,
            "</svg>",
        ]
    )


def _axis(axis: list[float], scale: float, bottom: float) -> list[str]:
    return [
        f'<line class="axis" x1="{_LEFT + tick * scale:.1f}" y1="{_TOP}" '
        f'x2="{_LEFT + tick * scale:.1f}" y2="{bottom}"/>'
        f'<text class="faint" x="{_LEFT + tick * scale:.1f}" y="{bottom + 16}" '
        f'text-anchor="middle">{tick_text(tick)}{" s" if tick == axis[-1] else ""}</text>'
        for tick in axis
    ]


def _bar(bar: Bar, index: int, scale: float, color: Mapping[str, int]) -> str:
    y = _TOP + index * _ROW + (_ROW - _BAR) / 2
    x, pieces = float(_LEFT), []
    for part, seconds in bar.seconds.items():
        width = seconds * scale
        pieces.append(
            f'<rect class="gap" x="{x:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" '
            f'fill="var(--c{color[part]})"><title>{escape(part)}: {seconds:.2f} s</title></rect>'
        )
        x += width
    total = sum(bar.seconds.values())
    return (
        f'<text x="{_LEFT - 10}" y="{y + 15}" text-anchor="end">{escape(bar.name)}</text>'
        f"{''.join(pieces)}"
        f'<text x="{x + 8:.1f}" y="{y + 15}">{total:.1f} s</text>'
    )


def _legend(color: Mapping[str, int], top: float) -> tuple[list[str], float]:
    width = max(120, 8 * max(map(len, color)) + 40)
    columns = max(1, (WIDTH - 20) // width)
    parts = []
    for index, (name, number) in enumerate(color.items()):
        x = 20 + index % columns * width
        y = top + index // columns * _LEGEND_ROW
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="var(--c{number})"/>'
            f'<text x="{x + 18}" y="{y}">{escape(name)}</text>'
        )
    return parts, top + _LEGEND_ROW * math.ceil(len(color) / columns)
