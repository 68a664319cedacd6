"""Charts as inline SVG: lines with a legend, stacked bars, timelines. Pure.

Ticks are at round numbers. A ``title`` is for screen readers. Every chart is empty without data.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from markupsafe import Markup

from submitrain.html.templates import render


def ticks(low: float, high: float, *, about: int = 6, whole: bool = False) -> list[float]:
    """Round numbers from at most ``low`` to at least ``high``, about ``about`` of them.

    ``whole`` asks for whole numbers: steps, ranks, nodes.
    """
    if not (math.isfinite(low) and math.isfinite(high)):
        return [0.0, 1.0]
    if high <= low:
        around = 0.5 if whole or not low else min(0.5, abs(low) / 2)
        low, high = low - around, high + around
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
_ROW, _BAR = 30, 18
COLORS = 10
_UNITS = ((2 * 86400, 86400, "d"), (2 * 3600, 3600, "h"), (120, 60, "min"), (0, 1, "s"))
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


def line_chart(
    series: Sequence[Series], *, x_label: str, y_label: str, title: str, y_from_zero: bool = False
) -> Markup:
    """All series in one frame over whole numbers (steps, nodes).

    ``y_from_zero`` is for what is to be compared by its height.
    """
    points = [p for one in series for p in one.points if all(map(math.isfinite, p))]
    if not points:
        return Markup("")
    heights = [y for _, y in points]
    heights += [y for one in series for _, low, high in one.spans for y in (low, high)]
    x_ticks = ticks(min(x for x, _ in points), max(x for x, _ in points), about=9, whole=True)
    y_ticks = ticks(min([*heights, 0.0] if y_from_zero else heights), max(heights))
    right, bottom = WIDTH - _RIGHT, HEIGHT - _BOTTOM

    def x_at(value: float) -> float:
        share = (value - x_ticks[0]) / (x_ticks[-1] - x_ticks[0])
        return round(_LEFT + share * (right - _LEFT), 2)

    def y_at(value: float) -> float:
        share = (value - y_ticks[0]) / (y_ticks[-1] - y_ticks[0])
        return round(bottom - share * (bottom - _TOP), 2)

    places, legend_height = _legend([one.name for one in series], left=_LEFT, least=150, sample=60)
    lines = [
        {
            "name": one.name,
            "color": one.color,
            "stroke": _stroke(one),
            "pieces": [[(x_at(x), y_at(y)) for x, y in piece] for piece in _pieces(one.points)],
            "spans": [(x_at(x), y_at(high), y_at(low)) for x, low, high in one.spans],
            "marks": [(x_at(x), y_at(y), text) for x, y, text in one.marks if math.isfinite(y)],
            "x": x,
            "y": HEIGHT + 8 + y,
        }
        for one, (x, y) in zip(series, places, strict=True)
    ]
    return render(
        "html/line_chart.svg.j2",
        title=title,
        width=WIDTH,
        height=HEIGHT + legend_height + 4,
        left=_LEFT,
        right=right,
        top=_TOP,
        bottom=bottom,
        x_label=x_label,
        y_label=y_label,
        x_ticks=[(x_at(value), tick_text(value)) for value in x_ticks],
        y_ticks=[(y_at(value), tick_text(value)) for value in y_ticks],
        lines=lines,
    )


def _pieces(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """Stretches of points that are finite."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            pieces[-1].append((x, y))
        elif pieces[-1]:
            pieces.append([])
    return [piece for piece in pieces if piece]


def _stroke(one: Series) -> Markup:
    style = f'fill="none" stroke="var(--c{one.color})" stroke-linejoin="round"'
    dash = _DASHES[one.dash % len(_DASHES)]
    if one.wide:
        style += ' stroke-width="9" stroke-opacity="0.3" stroke-linecap="round"'
    else:
        style += ' stroke-width="1.8"' + (f' stroke-dasharray="{dash}"' if dash else "")
    return Markup(style)


def _legend(
    names: Sequence[str], *, left: int, least: int, sample: int
) -> tuple[list[tuple[int, int]], int]:
    """Where the samples stand, in columns, and the height of all of them."""
    width = max(least, 8 * max(map(len, names), default=0) + sample)
    columns = max(1, (WIDTH - left) // width)
    places = [
        (left + index % columns * width, index // columns * _LEGEND_ROW)
        for index in range(len(names))
    ]
    return places, _LEGEND_ROW * math.ceil(len(names) / columns)


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


_Row = tuple[str, float, Sequence[tuple[float, str, str]], str]
"""Name, start in seconds, pieces of (seconds, colour of the page, text on hovering), label."""


def stacked_bars(bars: Sequence[Bar], *, title: str) -> Markup:
    """Where time went: all bars below each other on one axis of time, with a legend."""
    if not any(sum(bar.seconds.values()) > 0 for bar in bars):
        return Markup("")
    names = dict.fromkeys(part for bar in bars for part in bar.seconds)
    color = {name: f"c{index % COLORS}" for index, name in enumerate(names)}
    rows = [
        (
            bar.name,
            0.0,
            [(s, color[part], f"{part}: {s:.2f} s") for part, s in bar.seconds.items()],
            f"{sum(bar.seconds.values()):.1f} s",
        )
        for bar in bars
    ]
    return _rows_by_time(rows, title, left=170, right=90, legend=color)


def timeline(stretches: Sequence[Stretch], *, title: str) -> Markup:
    """Stretches of time below each other on one axis; a short one is still to be seen."""
    rows = [
        (one.name, one.start_s, [(one.end_s - one.start_s, one.color, "")], one.label)
        for one in stretches
    ]
    return _rows_by_time(rows, title, left=110, right=240, legend={}) if rows else Markup("")


def _rows_by_time(
    rows: Sequence[_Row], title: str, *, left: int, right: int, legend: Mapping[str, str]
) -> Markup:
    longest = max(1e-3, *(start + sum(s for s, _, _ in pieces) for _, start, pieces, _ in rows))
    _, size, unit = next(entry for entry in _UNITS if longest >= entry[0])
    axis = [tick for tick in ticks(0.0, longest / size, about=8) if tick >= 0]
    scale = (WIDTH - left - right) / axis[-1] / size
    placed = []
    for index, (name, start_s, pieces, label) in enumerate(rows):
        x, drawn = left + start_s * scale, []
        for seconds, color, text in pieces:
            width = max(0.0 if text else 2.0, seconds * scale)
            drawn.append((round(x, 2), round(width, 2), color, text))
            x += width
        placed.append((8 + index * _ROW + (_ROW - _BAR) / 2, name, drawn, round(x, 2), label))
    bottom = 8 + _ROW * len(rows)
    places, legend_height = _legend(list(legend), left=20, least=120, sample=40)
    samples = zip(places, legend.items(), strict=True)
    return render(
        "html/bars.svg.j2",
        title=title,
        width=WIDTH,
        height=bottom + 24 + (18 + legend_height if legend else 0),
        left=left,
        bottom=bottom,
        bar=_BAR,
        ticks=[
            (
                round(left + tick * size * scale, 2),
                tick_text(tick) + (f" {unit}" if tick == axis[-1] else ""),
            )
            for tick in axis
        ],
        rows=placed,
        legend=[(x, bottom + 42 + y, name, color) for (x, y), (name, color) in samples],
    )
