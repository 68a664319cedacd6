"""Parts for pages of others: a scoped fragment for notebooks, and a chart that stands alone. Pure.

A notebook's theme is not the browser's: JupyterLab, VS Code and Colab say theirs on ``body`` or
``html``. The fragment brings its own background, so it is legible under a theme it does not know.
"""

from __future__ import annotations

from monitor.html.page import DARK, LIGHT

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
