"""A line chart as inline SVG, with a legend and marked points. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from monitor.html.axis import tick_text, ticks

WIDTH, HEIGHT = 1000, 420
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 16, 14, 46
_LEGEND_ROW = 20
_DASHES = ("", "7 4", "2 3", "10 3 2 3", "4 2", "12 4", "1 3", "6 2 1 2")


@dataclass(frozen=True)
class Series:
    """One line; points that are not finite interrupt it."""

    name: str
    points: Sequence[tuple[float, float]]
    color: int = 0
    """Index of the page's series colours."""
    wide: bool = False
    """A broad pale band, for what others are compared with."""
    dash: int = 0
    marks: Sequence[tuple[float, float, str]] = field(default=())
    """(x, y, text on hovering): points with a symbol."""
    spans: Sequence[tuple[float, float, float]] = field(default=())
    """(x, low, high): intervals of confidence."""


@dataclass(frozen=True)
class _Frame:
    """Maps data to the plot's area."""

    x_ticks: list[float]
    y_ticks: list[float]

    def x(self, value: float) -> float:
        low, high = self.x_ticks[0], self.x_ticks[-1]
        return round(_LEFT + (value - low) / (high - low) * (WIDTH - _LEFT - _RIGHT), 2)

    def y(self, value: float) -> float:
        low, high = self.y_ticks[0], self.y_ticks[-1]
        return round(HEIGHT - _BOTTOM - (value - low) / (high - low) * (HEIGHT - _TOP - _BOTTOM), 2)


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, title: str, y_from_zero: bool = False
) -> str:
    """All series in one frame over whole numbers (steps, nodes); empty text without a point.

    ``title`` is for screen readers; ``y_from_zero`` for what is to be compared by its height.
    """
    points = [p for one in series for p in one.points if all(map(math.isfinite, p))]
    if not points:
        return ""
    spans = [(x, y) for one in series for x, low, high in one.spans for y in (low, high)]
    heights = [y for _, y in [*points, *spans]]
    frame = _Frame(
        ticks(min(x for x, _ in points), max(x for x, _ in points), about=9, whole=True),
        ticks(min([*heights, 0.0] if y_from_zero else heights), max(heights)),
    )
    legend, legend_height = _legend(series)
    return "\n".join(
        [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT + legend_height}" role="img" '
            f'aria-label="{escape(title)}"><title>{escape(title)}</title>',
            *_axes(frame, x_label, y_label),
            *(_line(one, frame) for one in series),
            *(span for one in series for span in _spans(one, frame)),
            *(mark for one in series for mark in _marks(one, frame)),
            *legend,
            "</svg>",
        ]
    )


def _axes(frame: _Frame, x_label: str, y_label: str) -> list[str]:
    bottom, right = HEIGHT - _BOTTOM, WIDTH - _RIGHT
    lines = [
        f'<line class="axis" x1="{_LEFT}" y1="{frame.y(value)}" x2="{right}" '
        f'y2="{frame.y(value)}"/>'
        f'<text x="{_LEFT - 8}" y="{frame.y(value) + 4}" text-anchor="end">{tick_text(value)}'
        "</text>"
        for value in frame.y_ticks
    ]
    lines += [
        f'<line class="axis" x1="{frame.x(value)}" y1="{bottom}" x2="{frame.x(value)}" '
        f'y2="{bottom + 5}"/>'
        f'<text x="{frame.x(value)}" y="{bottom + 19}" text-anchor="middle">{tick_text(value)}'
        "</text>"
        for value in frame.x_ticks
    ]
    middle = (_TOP + bottom) / 2
    return [
        *lines,
        f'<text class="faint" x="{(_LEFT + right) / 2}" y="{HEIGHT - 8}" text-anchor="middle">'
        f"{escape(x_label)}</text>",
        f'<text class="faint" transform="translate(14 {middle}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>",
    ]


def _line(one: Series, frame: _Frame) -> str:
    """Several polylines where it is interrupted, a dot where a single point stands alone."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in one.points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((frame.x(x), frame.y(y)))
        elif pieces[-1]:
            pieces.append([])
    return "".join(_piece(one, piece) for piece in pieces if piece)


def _piece(one: Series, piece: list[tuple[float, float]]) -> str:
    if len(piece) == 1:
        ((x, y),) = piece
        return f'<circle cx="{x}" cy="{y}" r="3" fill="var(--c{one.color})"/>'
    points = " ".join(f"{x},{y}" for x, y in piece)
    return f'<polyline points="{points}" {_stroke(one)}/>'


def _stroke(one: Series) -> str:
    style = f'fill="none" stroke="var(--c{one.color})" stroke-linejoin="round"'
    if one.wide:
        return f'{style} stroke-width="9" stroke-opacity="0.3" stroke-linecap="round"'
    dash = _DASHES[one.dash % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'{style} stroke-width="1.8"{dashes}'


def _marks(one: Series, frame: _Frame) -> list[str]:
    return [
        f'<g><title>{escape(text)}</title><circle cx="{frame.x(x)}" cy="{frame.y(y)}" r="5.5" '
        f'fill="var(--paper)" stroke="var(--c{one.color})" stroke-width="2.5"/></g>'
        for x, y, text in one.marks
        if math.isfinite(x) and math.isfinite(y)
    ]


def _spans(one: Series, frame: _Frame) -> list[str]:
    """A vertical stroke with a cap at either end."""
    return [
        f'<path d="M{x - 6} {top}h12m-6 0V{bottom}m-6 0h12" fill="none" '
        f'stroke="var(--c{one.color})" stroke-width="1.5"/>'
        for x, top, bottom in (
            (frame.x(x), frame.y(high), frame.y(low)) for x, low, high in one.spans
        )
    ]


def _legend(series: Sequence[Series]) -> tuple[list[str], int]:
    """Samples and names in columns below the chart, and the height that they take."""
    width = max(150, 8 * max(len(one.name) for one in series) + 60)
    columns = max(1, (WIDTH - _LEFT) // width)
    parts = []
    for index, one in enumerate(series):
        x = _LEFT + index % columns * width
        y = HEIGHT + 8 + index // columns * _LEGEND_ROW
        parts.append(
            f'<polyline points="{x},{y} {x + 34},{y}" {_stroke(one)}/>'
            f'<text x="{x + 42}" y="{y + 4}">{escape(one.name)}</text>'
        )
    return parts, _LEGEND_ROW * math.ceil(len(series) / columns) + 4
