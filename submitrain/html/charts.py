"""A line chart as inline SVG, with a legend and marked points. Pure.

Ticks at round numbers. Pure.

Horizontal stacked bars on one axis of seconds, as inline SVG: where time went. Pure.

Stretches of time below each other on one axis, as inline SVG. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape


def ticks(low: float, high: float, *, about: int = 6, whole: bool = False) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``about`` of them.

    ``whole`` asks for whole numbers: steps, ranks, nodes.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        low, high = low - 0.5, high + 0.5
    step = _round_step((high - low) / max(1, about - 1), whole=whole)
    first = math.floor(low / step + 1e-9)
    last = math.ceil(high / step - 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _round_step(raw: float, *, whole: bool) -> float:
    """The smallest of 1, 2, 2.5, 5, 10 times a power of ten that is at least ``raw``."""
    power = 10.0 ** math.floor(math.log10(raw))
    steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
    if whole:
        steps = [step for step in steps if step == int(step)] or [1.0]
    return next((step for step in steps if step >= raw * 0.999), steps[-1])


def tick_text(value: float) -> str:
    """A number without needless digits."""
    return f"{value:.10g}"


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


BARS_WIDTH = 1000
_BARS_LEFT, _BARS_RIGHT, _BARS_TOP, _ROW, _BAR = 170, 70, 8, 32, 20
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
    scale = (BARS_WIDTH - _BARS_LEFT - _BARS_RIGHT) / axis[-1]
    bottom = _BARS_TOP + _ROW * len(bars)
    legend, height = _bars_legend(color, bottom + 42)
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
    y = _BARS_TOP + index * _ROW + (_ROW - _BAR) / 2
    x, pieces = float(_BARS_LEFT), []
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


def _bars_legend(color: Mapping[str, int], top: float) -> tuple[list[str], float]:
    width = max(120, 8 * max(map(len, color)) + 40)
    columns = max(1, (BARS_WIDTH - 20) // width)
    parts = []
    for index, (name, number) in enumerate(color.items()):
        x = 20 + index % columns * width
        y = top + index // columns * _LEGEND_ROW
        parts.append(
            f'<rect x="{x}" y="{y - 10}" width="12" height="12" fill="var(--c{number})"/>'
            f'<text x="{x + 18}" y="{y}">{escape(name)}</text>'
        )
    return parts, top + _LEGEND_ROW * math.ceil(len(color) / columns)


TIMELINE_WIDTH = 1000
_TIMELINE_LEFT, _TIMELINE_RIGHT, _TIMELINE_TOP, _TIMELINE_ROW, _TIMELINE_BAR = 110, 240, 8, 26, 16
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
    scale = (TIMELINE_WIDTH - _TIMELINE_LEFT - _TIMELINE_RIGHT) / axis[-1] / size
    bottom = _TIMELINE_TOP + _TIMELINE_ROW * len(rows)
    parts = [
        f'<line class="axis" x1="{_LEFT + tick * size * scale:.1f}" y1="{_TOP}" '
        f'x2="{_LEFT + tick * size * scale:.1f}" y2="{bottom}"/>'
        f'<text class="faint" x="{_LEFT + tick * size * scale:.1f}" y="{bottom + 16}" '
        f'text-anchor="middle">{tick_text(tick)}{f" {unit}" if tick == axis[-1] else ""}</text>'
        for tick in axis
    ]
    parts += [
        _row(row, _TIMELINE_TOP + index * _TIMELINE_ROW, scale) for index, row in enumerate(rows)
    ]
    return (
        f'<svg viewBox="0 0 {WIDTH} {bottom + 24}" role="img" aria-label="{escape(title)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def _row(row: Stretch, top: float, scale: float) -> str:
    x, y = _TIMELINE_LEFT + row.start_s * scale, top + (_TIMELINE_ROW - _TIMELINE_BAR) / 2
    width = max(2.0, (row.end_s - row.start_s) * scale)
    return (
        f'<text x="{_LEFT - 10}" y="{y + 13}" text-anchor="end">{escape(row.name)}</text>'
        f'<rect x="{x:.1f}" y="{y}" width="{width:.1f}" height="{_BAR}" rx="2" '
        f'fill="var(--{row.color})"/>'
        f'<text x="{x + width + 6:.1f}" y="{y + 13}">{escape(row.label)}</text>'
    )
