"""Charts as inline SVG: lines with a legend, stacked bars, timelines. Pure.

Ticks are at round numbers. A ``title`` is for screen readers. Every chart is empty without data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import escape


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
    """All series in one frame over whole numbers (steps, nodes).

    ``y_from_zero`` is for what is to be compared by its height.
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
    parts = [
        *_axes(frame, x_label, y_label),
        *(_line(one, frame) for one in series),
        *(_spans_and_marks(one, frame) for one in series),
        *legend,
    ]
    return _svg(title, HEIGHT + legend_height, parts)


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
    drawn = ""
    for piece in pieces:
        if len(piece) == 1:
            ((x, y),) = piece
            drawn += f'<circle cx="{x}" cy="{y}" r="3" fill="var(--c{one.color})"/>'
        elif piece:
            places = " ".join(f"{x},{y}" for x, y in piece)
            drawn += f'<polyline points="{places}" {_stroke(one)}/>'
    return drawn


def _stroke(one: Series) -> str:
    style = f'fill="none" stroke="var(--c{one.color})" stroke-linejoin="round"'
    if one.wide:
        return f'{style} stroke-width="9" stroke-opacity="0.3" stroke-linecap="round"'
    dash = _DASHES[one.dash % len(_DASHES)]
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'{style} stroke-width="1.8"{dashes}'


def _spans_and_marks(one: Series, frame: _Frame) -> str:
    """Vertical strokes with a cap at either end, and circles that say something."""
    drawn = ""
    for at, low, high in one.spans:
        x, top, bottom = frame.x(at), frame.y(high), frame.y(low)
        drawn += (
            f'<path d="M{x - 6} {top}h12m-6 0V{bottom}m-6 0h12" fill="none" '
            f'stroke="var(--c{one.color})" stroke-width="1.5"/>'
        )
    for x, y, text in one.marks:
        if math.isfinite(x) and math.isfinite(y):
            drawn += (
                f'<g><title>{escape(text)}</title><circle cx="{frame.x(x)}" cy="{frame.y(y)}" '
                f'r="5.5" fill="var(--paper)" stroke="var(--c{one.color})" stroke-width="2.5"/></g>'
            )
    return drawn


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


COLORS = 10
_ROW, _BAR = 30, 18
_UNITS = ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))


@dataclass(frozen=True)
class Bar:
    """One row of stacked bars: seconds by part, in order."""

    name: str
    seconds: Mapping[str, float]


@dataclass(frozen=True)
class Stretch:
    """One row of a timeline; seconds since the first start."""

    name: str
    start_s: float
    end_s: float
    label: str
    color: str
    """A colour of the page: ``good``, ``bad``, ``warn``, ``c0`` .. ``c9``."""


@dataclass(frozen=True)
class _Row:
    name: str
    start_s: float
    pieces: Sequence[tuple[float, str, str]]
    """(seconds, colour of the page, text on hovering)"""
    label: str


def stacked_bars(bars: Sequence[Bar], *, title: str) -> str:
    """Where time went: all bars below each other on one axis of time, with a legend."""
    if not any(sum(bar.seconds.values()) > 0 for bar in bars):
        return ""
    names = dict.fromkeys(part for bar in bars for part in bar.seconds)
    color = {name: f"c{index % COLORS}" for index, name in enumerate(names)}
    rows = [
        _Row(
            bar.name,
            0.0,
            [(s, color[part], f"{part}: {s:.2f} s") for part, s in bar.seconds.items()],
            f"{sum(bar.seconds.values()):.1f} s",
        )
        for bar in bars
    ]
    return _rows_by_time(rows, title, left=170, right=90, legend=color)


def timeline(stretches: Sequence[Stretch], *, title: str) -> str:
    """Stretches of time below each other on one axis."""
    rows = [
        _Row(one.name, one.start_s, [(one.end_s - one.start_s, one.color, "")], one.label)
        for one in stretches
    ]
    return _rows_by_time(rows, title, left=110, right=240) if rows else ""


def _rows_by_time(
    rows: Sequence[_Row],
    title: str,
    *,
    left: int,
    right: int,
    legend: Mapping[str, str] | None = None,
) -> str:
    longest = max(1e-3, *(row.start_s + sum(s for s, _, _ in row.pieces) for row in rows))
    _, size, unit = next(entry for entry in _UNITS if longest >= entry[0])
    axis = [tick for tick in ticks(0.0, longest / size, about=8) if tick >= 0]
    scale = (WIDTH - left - right) / axis[-1] / size
    top, bottom = 8, 8 + _ROW * len(rows)
    parts = []
    for tick in axis:
        x = f"{left + tick * size * scale:.1f}"
        parts.append(
            f'<line class="axis" x1="{x}" y1="{top}" x2="{x}" y2="{bottom}"/>'
            f'<text class="faint" x="{x}" y="{bottom + 16}" text-anchor="middle">{tick_text(tick)}'
            f"{f' {unit}' if tick == axis[-1] else ''}</text>"
        )
    for index, row in enumerate(rows):
        y = top + index * _ROW + (_ROW - _BAR) / 2
        x_at = float(left + row.start_s * scale)
        parts.append(
            f'<text x="{left - 10}" y="{y + 14}" text-anchor="end">{escape(row.name)}</text>'
        )
        for seconds, color, text in row.pieces:
            width = max(0.0 if text else 2.0, seconds * scale)
            hover = f"<title>{escape(text)}</title>" if text else ""
            parts.append(
                f'<rect class="gap" x="{x_at:.2f}" y="{y}" width="{width:.2f}" height="{_BAR}" '
                f'fill="var(--{color})">{hover}</rect>'
            )
            x_at += width
        parts.append(f'<text x="{x_at + 7:.1f}" y="{y + 14}">{escape(row.label)}</text>')
    height = bottom + 24
    if legend:
        width = max(120, 8 * max(map(len, legend)) + 40)
        columns = max(1, (WIDTH - 20) // width)
        for index, (name, color) in enumerate(legend.items()):
            x_at, y = 20 + index % columns * width, bottom + 42 + index // columns * _LEGEND_ROW
            parts.append(
                f'<rect x="{x_at}" y="{y - 10}" width="12" height="12" fill="var(--{color})"/>'
                f'<text x="{x_at + 18}" y="{y}">{escape(name)}</text>'
            )
        height = bottom + 42 + _LEGEND_ROW * math.ceil(len(legend) / columns)
    return _svg(title, height, parts)


def _svg(title: str, height: float, parts: Sequence[str]) -> str:
    name = escape(title)
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{name}"><title>{name}</title>'
        + "\n".join(parts)
        + "</svg>"
    )
