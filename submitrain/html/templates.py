"""Pages and notebook boxes from Jinja2 templates: self-contained, no scripts, light and dark.

A template lies beside the module that fills it and is named from the package's root, such as
``monitor/report/report.html.j2``. Everything that it inserts is escaped unless it is ``Markup``.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from markupsafe import Markup

from submitrain.html.table import SIGNS
from submitrain.text import utc

if TYPE_CHECKING:
    from jinja2 import Environment

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
SCOPE = "submitrain-card"
"""Class of a notebook box; no other part of a page may use it."""
_THEMES = (
    (('body[data-jp-theme-light="true"]', 'body[data-vscode-theme-kind$="light"]',
      "body.vscode-light", 'html[theme="light"]'), LIGHT),
    (('body[data-jp-theme-light="false"]', 'body[data-vscode-theme-kind$="dark"]',
      "body.vscode-dark", 'html[theme="dark"]'), DARK),
)  # fmt: skip
"""How JupyterLab, VS Code and Colab say their theme, which need not be the browser's."""


@cache
def environment() -> Environment:
    """Jinja2 with escaping, and an error for whatever a template names that is not given."""
    # Here: a command that shows no page starts without Jinja2 (40 ms).
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    found = Environment(
        loader=FileSystemLoader(Path(__file__).resolve().parent.parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    found.globals["signs"] = SIGNS
    found.filters["utc"] = utc
    return found


def render(template: str, **values: object) -> Markup:
    """A template filled with values."""
    return Markup(environment().get_template(template).render(**values))


def page(title: str, template: str, **values: object) -> str:
    """A whole document around a template."""
    colors = {"light": Markup(LIGHT), "dark": Markup(DARK), "style": Markup(_style())}
    body = render(template, **values)
    return str(render("html/base.html.j2", title=title, body=body, **colors))


def notebook_box(template: str, *, width_px: int, **values: object) -> str:
    """A template in a box for notebooks, whose style touches nothing outside of it."""
    box = render(
        "html/notebook.html.j2",
        scope=SCOPE,
        light=Markup(LIGHT),
        dark=Markup(DARK),
        themed=[([Markup(one) for one in themes], Markup(colors)) for themes, colors in _THEMES],
        style=Markup(_scoped(_style())),
        width_px=width_px,
        body=render(template, **values),
    )
    return str(box)


def svg_document(svg: str) -> str:
    """A chart as a file of its own: name space, style and background inside."""
    opening, closed, rest = str(svg).partition(">")
    head = opening.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    width, height = opening.partition('viewBox="0 0 ')[2].partition('"')[0].split()
    colors = f":root {{ {LIGHT} }} @media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}"
    rules = "\n".join(rule for rule in _style().splitlines() if rule.startswith("svg "))
    rules += "\nsvg text { font-size: 14px; }"
    paper = f'<rect width="{width}" height="{height}" fill="var(--paper)"/>'
    return f"{head}{closed}<style>{colors}{rules}</style>{paper}{rest}"


@cache
def _style() -> str:
    return Path(__file__).with_name("style.css").read_text()


def _scoped(rules: str) -> str:
    """Every rule below the box only. ``@`` rules are not known."""
    found = []
    for rule in rules.strip().split("}"):
        selectors, brace, body = rule.partition("{")
        if brace:
            names = [f".{SCOPE} {name.strip()}" for name in selectors.split(",")]
            found.append(f"{', '.join(names)} {{{body}}}")
    return "\n".join(found)
