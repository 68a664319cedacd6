"""What is said of a file that is missing or is not YAML. Imports pyyaml only."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from train.config.redact import hidden


def syntax_error(error: yaml.YAMLError, text: str, name: str, one_place: bool) -> str:
    """Where a text stops being YAML, what stands there, and what to look for."""
    if not isinstance(error, yaml.MarkedYAMLError):
        position = getattr(error, "position", 0)
        line = text.count("\n", 0, position) + 1
        where = name if one_place else f"{name}:{line}"
        return f"{where}: not YAML: {getattr(error, 'reason', error)}; remove that character"
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "cannot be parsed"
    if mark is None:
        return f"{name}: not YAML: {problem}"
    lines = text.splitlines()
    offending = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    where = name if one_place else f"{name}:{mark.line + 1}:{mark.column + 1}"
    context = ""
    if error.context and error.context_mark and error.context_mark.line != mark.line:
        context = f" ({error.context} in line {error.context_mark.line + 1})"
    hint = (
        "put ${...} in quotes inside { } and [ ]"
        if "${" in offending
        else "look for a missing quote, colon, bracket or indent there"
    )
    return f"{where}: not YAML: {problem}{context}, got `{hidden(offending)}`; {hint}"


def missing_file(path: Path) -> str:
    """That a file does not exist, and which of its neighbours may be meant."""
    folder = path.parent
    if not folder.is_dir():
        return f"{path}: no such file; there is no folder {folder}{_near_folder(path)}"
    here = sorted(p.name for p in folder.glob("[!.]*.y*ml"))
    near = get_close_matches(path.name, here, n=1)
    if near:
        return f"{path}: no such file; did you mean {folder / near[0]}?"
    found = f"{folder} has {', '.join(here[:8])}" if here else f"{folder} holds no YAML file"
    return f"{path}: no such file; {found}"


def _near_folder(path: Path) -> str:
    above = path.parent.parent
    names = [one.name for one in above.iterdir() if one.is_dir()] if above.is_dir() else []
    near = get_close_matches(path.parent.name, names, n=1)
    found = above / near[0] / path.name if near else path
    return f"; did you mean {found}?" if found.is_file() else ""


def kind_of(value: Any) -> str:
    """A value that stands where a mapping is expected, in words."""
    return "a list" if isinstance(value, list) else f"{type(value).__name__} {value!r}"
