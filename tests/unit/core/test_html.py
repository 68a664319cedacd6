"""Parts of report pages: well-formed, escaped, self-contained; charts map numbers to places."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import ChoiceLoader, DictLoader, UndefinedError
from markupsafe import Markup
from rich.console import Console

from submitrain.html.charts import (
    HEIGHT,
    WIDTH,
    Bar,
    Series,
    line_chart,
    stacked_bars,
    tick_text,
    ticks,
)
from submitrain.html.table import Cell, Table
from submitrain.html.templates import SCOPE, environment, notebook_box, page

HOSTILE = "<script>alert('&')</script>"
SVG = "{http://www.w3.org/2000/svg}"


def parsed(svg: str) -> ElementTree.Element:
    """The chart as a tree; HTML gives inline SVG its namespace by itself."""
    return ElementTree.fromstring(
        str(svg).replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ')
    )


def _first_y(line: ElementTree.Element) -> float:
    return float(line.attrib["points"].split()[0].split(",")[1])


PARTS = """{% from "html/parts.html.j2" import badge, table, unfold %}
{% call unfold(text) %}{{ badge(text, "good") }}{% endcall %}{{ table(found) }}"""


@pytest.fixture
def template(monkeypatch: pytest.MonkeyPatch) -> str:
    """A template of all parts, by its name."""
    sources: dict[str, str] = {"all.html.j2": PARTS}
    environment.cache_clear()
    loader = ChoiceLoader([DictLoader(sources), environment().loader])
    monkeypatch.setattr(environment(), "loader", loader)
    return "all.html.j2"


def test_a_page_needs_nothing_from_elsewhere_and_runs_nothing(template: str) -> None:
    text = page(HOSTILE, template, text=HOSTILE, found=TABLE)
    assert "<script" not in text
    assert not re.search(r"https?://|src=|@import|url\(", text)
    assert text.startswith("<!doctype html>")
    assert "prefers-color-scheme: dark" in text
    assert "@media print" in text
    assert '<span class="badge good">✓ &lt;script&gt;' in text


def test_a_box_for_a_notebook_styles_nothing_but_itself(template: str) -> None:
    text = notebook_box(template, width_px=780, text="a", found=TABLE)
    style = text.partition("<style>")[2].partition("</style>")[0]
    assert style.count("{") == style.count("}")
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]+\{", "", style))
    assert len(selectors) > 30
    assert all(f".{SCOPE}" in one for each in selectors for one in each.split(","))
    assert "<html" not in text


@given(st.floats(-1e6, 1e6), st.floats(1e-2, 1e9))
def test_ticks_are_round_enclose_the_range_and_are_not_too_many(low: float, width: float) -> None:
    high = low + width
    found = ticks(low, high)
    assert found[0] <= low + width * 1e-6
    assert found[-1] >= high - width * 1e-6
    assert 2 <= len(found) <= 16
    assert found == sorted(set(found))


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (1, 20, [0, 5, 10, 15, 20]),
        (2.31, 2.39, [2.3, 2.32, 2.34, 2.36, 2.38, 2.4]),
        (3, 3, [2.4, 2.6, 2.8, 3.0, 3.2, 3.4, 3.6]),
        (1e-4, 1e-4, [4e-5, 6e-5, 8e-5, 1e-4, 1.2e-4, 1.4e-4, 1.6e-4]),
        (math.nan, math.inf, [0, 1]),
    ],
)
def test_ticks_of_known_ranges(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high) == expected


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1, 20, [0, 5, 10, 15, 20]),
        (1, 4, [1, 2, 3, 4]),
        (1, 2, [1, 2]),
        (0, 200, [0, 25, 50, 75, 100, 125, 150, 175, 200]),
    ],
)
def test_ticks_of_steps_are_whole(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high, about=9, whole=True) == expected


def test_a_tick_has_no_needless_digits() -> None:
    assert [tick_text(value) for value in (0.0, 2.5, 1000.0, 0.1)] == ["0", "2.5", "1000", "0.1"]


def test_a_line_runs_from_corner_to_corner_of_the_plot() -> None:
    chart = line_chart(
        [Series("a & b", [(0, 0), (10, 5)])], x_label="step", y_label="loss", title=HOSTILE
    )
    tree = parsed(chart)
    line = next(e for e in tree.iter(f"{SVG}polyline") if "stroke-dasharray" not in e.attrib)
    (x0, y0), (x1, y1) = (map(float, p.split(",")) for p in line.attrib["points"].split())
    assert (x0, x1) == (64, WIDTH - 16)
    assert (y0, y1) == (HEIGHT - 46, 14)
    assert "a & b" in [element.text for element in tree.iter(f"{SVG}text")]


def test_what_is_no_number_interrupts_a_line_and_a_lonely_point_shows() -> None:
    points = [(0.0, 1.0), (1.0, 2.0), (2.0, math.nan), (3.0, 1.0), (4.0, math.inf), (5.0, 1.0)]
    points += [(6.0, 2.0)]
    tree = parsed(line_chart([Series("a", points)], x_label="x", y_label="y", title="t"))
    in_plot = '[@stroke-width="1.8"]'
    lines = [e for e in tree.findall(f"{SVG}polyline{in_plot}") if _first_y(e) < HEIGHT]
    assert [len(line.attrib["points"].split()) for line in lines] == [2, 2]
    assert len(list(tree.iter(f"{SVG}circle"))) == 1
    assert line_chart([Series("a", [(0, math.nan)])], x_label="", y_label="", title="") == ""


def test_a_mark_says_what_it_is() -> None:
    series = Series("a", [(0, 0), (1, 1)], marks=[(1, 1, HOSTILE), (2, math.nan, "lost")])
    tree = parsed(line_chart([series], x_label="x", y_label="y", title="t"))
    assert [e.text for e in tree.iter(f"{SVG}title")] == ["t", HOSTILE]


def test_bars_are_as_long_as_their_seconds() -> None:
    bars = [Bar("first", {"load": 2.0, "step": 1.0}), Bar("second", {"wait": 4.0, "load": 1.0})]
    tree = parsed(stacked_bars(bars, title="times"))
    widths = [
        float(e.attrib["width"]) for e in tree.iter(f"{SVG}rect") if e.attrib.get("class") == "gap"
    ]
    assert [width / widths[1] for width in widths] == pytest.approx([2, 1, 4, 1], rel=0.01)
    texts = [element.text for element in tree.iter(f"{SVG}text")]
    assert {"first", "second", "load", "step", "wait", "3.0 s", "5.0 s"} <= set(texts)
    same = {e.attrib["fill"] for e in tree.iter(f"{SVG}rect") if "load" in "".join(e.itertext())}
    assert len(same) == 1, "a part has one colour in all bars"
    assert stacked_bars([], title="t") == ""


def test_intervals_are_within_the_frame_and_heights_are_comparable_from_zero() -> None:
    one = Series("speed", [(1, 10.0), (2, 18.0)], spans=[(1, 9.0, 11.0), (2, 14.0, 31.0)])
    svg = line_chart([one], x_label="n", y_label="y", title="t", y_from_zero=True)
    tree = parsed(svg)
    strokes = [path.attrib["d"] for path in tree.iter(f"{SVG}path")]
    assert len(strokes) == 2
    tops = [float(re.split(r"[ h]", text)[1]) for text in strokes]
    bottoms = [float(re.split(r"[Vm]", text.partition("V")[2])[0]) for text in strokes]
    assert all(0 <= top < bottom <= HEIGHT for top, bottom in zip(tops, bottoms, strict=True))
    labels = [text.text for text in tree.iter(f"{SVG}text")]
    assert "0" in labels and "40" in labels, "the axis holds zero and the longest interval"


TABLE = Table(
    ["<name>", "seconds", "why"],
    [["a", "1.0", Cell("<no>", "bad", note="<else>")], [Cell("b", "code"), "2.0", Cell("c")]],
    numbers=["seconds"],
    left_out=7,
)


def test_a_table_is_the_same_on_a_page_and_on_the_terminal() -> None:
    text = "{% from 'html/parts.html.j2' import table %}{{ table(found) }}"
    body = environment().from_string(text).render(found=TABLE)
    assert '<th>&lt;name&gt;</th><th class="number">seconds</th>' in body
    assert '<td class="number">1.0</td>' in body
    assert '<span class="badge bad">✗ &lt;no&gt;</span><br><span class="faint">&lt;else&gt;' in body
    assert "<td><code>b</code></td>" in body
    assert "7 earlier ones are left out." in body
    console = Console(width=80, color_system=None)
    with console.capture() as capture:
        console.print(TABLE.without("seconds").on_terminal())
    assert [line.split() for line in capture.get().splitlines()] == [
        ["<name>", "why"],
        ["a", "✗", "<no>"],
        ["b", "c"],
    ]


def test_a_template_escapes_and_names_nothing_that_is_not_given() -> None:
    found = environment().from_string("{{ text }} {{ chart }}")
    assert found.render(text=HOSTILE, chart=Markup("<svg/>")).endswith("&lt;/script&gt; <svg/>")
    with pytest.raises(UndefinedError, match="'chart' is undefined"):
        found.render(text="")


def test_grid_lines_of_bars_stand_where_the_bars_begin() -> None:
    tree = parsed(stacked_bars([Bar("first", {"load": 2.0, "step": 1.0})], title="times"))
    begin = float(next(tree.iter(f"{SVG}rect")).attrib["x"])
    lines = [float(line.attrib["x1"]) for line in tree.iter(f"{SVG}line")]
    assert min(lines) == begin
    assert max(lines) >= begin + 3.0 * (lines[1] - lines[0]) / 0.5
    name = next(e for e in tree.iter(f"{SVG}text") if e.text == "first")
    assert float(name.attrib["x"]) < begin
