"""A self-contained HTML page and its plain parts; legible in light, in dark and on paper.

Parts for pages of others: a scoped fragment for notebooks, and a chart that stands alone. Pure.

A notebook's theme is not the browser's: JupyterLab, VS Code and Colab say theirs on ``body`` or
``html``. The fragment brings its own background, so it is legible under a theme it does not know.

Parts of reports: one self-contained page, charts as inline SVG. Pure; no network, no scripts.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

LIGHT = """
  --paper: #ffffff; --ink: #1b1f24; --faint: #59636e; --line: #d1d9e0; --panel: #f6f8fa;
  --good: #1a7f37; --bad: #cf222e; --warn: #9a6700;
  --c0: #0969da; --c1: #bc4c00; --c2: #1a7f37; --c3: #8250df; --c4: #bf3989;
  --c5: #0a7d7d; --c6: #9a6700; --c7: #cf222e; --c8: #57606a; --c9: #4d2d00;
"""
DARK = """
  --paper: #0d1117; --ink: #e6edf3; --faint: #9198a1; --line: #3d444d; --panel: #151b23;
  --good: #3fb950; --bad: #ff7b72; --warn: #d29922;
  --c0: #58a6ff; --c1: #ffa657; --c2: #56d364; --c3: #bc8cff; --c4: #ff9bce;
  --c5: #39c5cf; --c6: #e3b341; --c7: #ff7b72; --c8: #9198a1; --c9: #d2a679;
"""
"""Colours of a page; ten of series (``--c0`` .. ``--c9``), with contrast on either background."""

STYLE = (
    f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media screen and (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
"""
    + """
* { box-sizing: border-box; }
body {
  margin: 0 auto; padding: 24px 20px 48px; max-width: 1080px; background: var(--paper);
  color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif;
}
h1 { font-size: 24px; margin: 0 0 4px; }
h2 { font-size: 18px; margin: 32px 0 8px; padding-top: 12px; border-top: 1px solid var(--line); }
h3 { font-size: 15px; margin: 16px 0 4px; }
p { margin: 6px 0; }
.faint { color: var(--faint); }
.verdict { font-size: 17px; padding: 10px 14px; margin: 14px 0; border-radius: 6px;
  background: var(--panel); border-left: 5px solid var(--line); }
.verdict.good { border-color: var(--good); } .verdict.bad { border-color: var(--bad); }
.wide { overflow-x: auto; }
table { border-collapse: collapse; table-layout: auto; width: 100%;
  font-variant-numeric: tabular-nums; }
th, td { text-align: left; vertical-align: top; padding: 5px 14px 5px 0;
  border-bottom: 1px solid var(--line); }
th { color: var(--faint); font-weight: 600; white-space: nowrap; }
td.number, th.number { text-align: right; white-space: nowrap; }
.badge { font-weight: 600; white-space: nowrap; }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.verdict.good, .verdict.bad { color: var(--ink); }
.when { white-space: nowrap; }
code, pre { font: 13px/1.45 ui-monospace, "DejaVu Sans Mono", monospace; }
pre { background: var(--panel); padding: 10px; border-radius: 6px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
svg { width: 100%; height: auto; display: block; margin: 8px 0; }
svg text { fill: var(--ink); font: 12px system-ui, "DejaVu Sans", sans-serif; }
svg text.faint { fill: var(--faint); }
svg .axis { stroke: var(--line); stroke-width: 1; }
svg .gap { stroke: var(--paper); stroke-width: 1; }
details { margin: 8px 0; } summary { cursor: pointer; }
@media print {
  body { max-width: none; padding: 0; font-size: 11pt; }
  h2, h3 { break-after: avoid; } svg, table, .verdict { break-inside: avoid; }
  * { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""
)


def page(title: str, body: Iterable[str]) -> str:
    """A whole document; ``body`` holds HTML."""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body>\n{chr(10).join(body)}\n</body></html>\n"
    )


def scoped(body: Iterable[str]) -> str:
    """``body`` for a place inside another page (a notebook): styles that reach nothing else there.

    CSS nesting: Chrome 120, Firefox 117, Safari 17.2 and later.
    """
    style = STYLE.replace(":root", "&").replace("body {", "& {")
    inside = "\n".join(body)
    return f'<div class="submitrain"><style>.submitrain {{{style}}}</style>{inside}</div>'


def section(title: str, *body: str) -> str:
    """A heading and what belongs to it; ``body`` holds HTML."""
    return f"<h2>{escape(title)}</h2>\n" + "\n".join(body)


def table(
    header: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Sequence[int] = ()
) -> str:
    """A table; cells hold HTML, ``header`` plain text; columns ``numbers`` are set to the right."""

    def cells(tag: str, values: Sequence[str]) -> str:
        kinds = [' class="number"' if index in numbers else "" for index in range(len(values))]
        pairs = zip(kinds, values, strict=True)
        return "".join(f"<{tag}{kind}>{value}</{tag}>" for kind, value in pairs)

    head = cells("th", [escape(name) for name in header])
    lines = "\n".join(f"<tr>{cells('td', row)}</tr>" for row in rows)
    return f'<div class="wide"><table><tr>{head}</tr>\n{lines}</table></div>'


def badge(text: str, *, good: bool) -> str:
    """A word with a sign and a colour, so that it can be told without colours too."""
    return (
        f'<span class="badge {"good" if good else "bad"}">'
        f"{'&#10003;' if good else '&#10007;'} {escape(text)}</span>"
    )


def details(summary: str, *body: str, shown: bool = False) -> str:
    """Something to unfold; ``summary`` is plain text, ``body`` HTML."""
    mark = " open" if shown else ""
    return f"<details{mark}><summary>{escape(summary)}</summary>\n{''.join(body)}</details>"


SCOPE = "submitrain-card"
"""Class of the box; no other part of a page may use it."""
_CHART = """
svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--ink); font: 14px system-ui, "DejaVu Sans", sans-serif; }
svg text.faint { fill: var(--faint); }
svg .axis { stroke: var(--line); stroke-width: 1; }
"""
_CARD = """
& { background: var(--paper); color: var(--ink); border: 1px solid var(--line);
  border-radius: 6px; padding: 10px 14px; max-width: 780px; box-sizing: border-box;
  font: 14px/1.45 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
a { color: var(--c0); }
.faint { color: var(--faint); }
.good { color: var(--good); } .bad { color: var(--bad); } .warn { color: var(--warn); }
.head { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; }
.name { font-weight: 600; overflow-wrap: anywhere; }
.state { font-weight: 600; white-space: nowrap; }
.bar { height: 8px; margin: 8px 0 6px; border-radius: 4px; background: var(--line);
  overflow: hidden; }
.bar div { height: 100%; background: var(--c0); }
.bar div.good { background: var(--good); } .bar div.bad { background: var(--bad); }
.bar div.warn { background: var(--warn); }
.facts { display: flex; flex-wrap: wrap; gap: 2px 18px; font-variant-numeric: tabular-nums; }
.facts span { white-space: nowrap; }
ul { margin: 6px 0; padding-left: 18px; font-size: 13px; }
li { margin: 0; }
pre { background: var(--panel); color: var(--ink); padding: 8px; border-radius: 4px;
  white-space: pre-wrap; overflow-wrap: anywhere; font-size: 12px; margin: 6px 0; }
"""
_DARK_THEMES = (
    'body[data-jp-theme-light="false"]',
    'body[data-vscode-theme-kind$="dark"]',
    "body.vscode-dark",
    'html[theme="dark"]',
)
_LIGHT_THEMES = (
    'body[data-jp-theme-light="true"]',
    'body[data-vscode-theme-kind$="light"]',
    "body.vscode-light",
    'html[theme="light"]',
)


def fragment(body: str) -> str:
    """``body`` (HTML) in a box whose style touches nothing outside it."""
    return f'<div class="{SCOPE}"><style>{_STYLE}</style>{body}</div>'


def svg_document(svg: str) -> str:
    """A chart as a file of its own: name space, style and background inside."""
    opening, closed, rest = svg.partition(">")
    head = opening.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    width, height = opening.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    style = f":root {{ {LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}"
    paper = f'<rect width="{width}" height="{height}" fill="var(--paper)"/>'
    return f"{head}{closed}<style>{style}{_CHART}</style>{paper}{rest}"


def _scoped(rules: str) -> str:
    """Every rule below the box only; ``&`` is the box itself."""
    found = []
    for rule in rules.strip().split("}"):
        selectors, brace, body = rule.partition("{")
        if brace:
            names = [name.strip() for name in selectors.split(",")]
            scoped = [f".{SCOPE}" if name == "&" else f".{SCOPE} {name}" for name in names]
            found.append(f"{', '.join(scoped)} {{{body}}}")
    return "\n".join(found)


def _themed(themes: tuple[str, ...], colors: str) -> str:
    return f"{', '.join(f'{theme} .{SCOPE}' for theme in themes)} {{ {colors} }}"


_STYLE = "\n".join(
    [
        f".{SCOPE} {{ {LIGHT} }}",
        f"@media (prefers-color-scheme: dark) {{ .{SCOPE} {{ {DARK} }} }}",
        _themed(_LIGHT_THEMES, LIGHT),
        _themed(_DARK_THEMES, DARK),
        _scoped(_CARD + _CHART),
    ]
)
