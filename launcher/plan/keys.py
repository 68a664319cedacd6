"""An account of every key of a configuration: used, another name for ours, neutral, or refused.

For configurations of NeMo AutoModel above all: ``plan CFG.yaml --keys``. Imports no torch.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from submitrain.config.automodel import NEUTRAL, TARGETS, translate
from submitrain.config.document import Document, KeyPath, dotted
from submitrain.config.placeholders import hidden
from submitrain.config.resolve import Resolved, examine
from submitrain.config.schema import aliases, sections
from submitrain.launcher.plan.config import read_source, refuse_secrets, unsuitable
from submitrain.launcher.plan.overrides import apply_overrides


class KeyStatus(StrEnum):
    """What becomes of a key."""

    USED = "used"
    ALIASED = "aliased"
    NEUTRAL = "neutral"
    """Accepted, since it asks for what is done anyway."""
    REFUSED = "refused"


@dataclass(frozen=True)
class KeyAccount:
    """One key as it was written, and what becomes of it."""

    key: str
    value: str
    status: KeyStatus
    why: str
    where: str

    def as_json(self) -> dict[str, str]:
        """For ``--json``; the status is called ``fate`` there."""
        found = {"key": self.key, "value": self.value, "fate": str(self.status)}
        return {**found, "why": self.why, "where": self.where}


def account(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
) -> list[KeyAccount]:
    """Every key in the order in which it was written; never raises for a key that is wrong.

    Raises:
        ConfigError: the file cannot be read at all, or it holds a secret.
    """
    document, _ = read_source(source)
    document = apply_overrides(document, overrides)
    refuse_secrets(document)
    moved = translate(document).moved
    problems = _problems(document, os.environ if environ is None else environ)

    def status_of(path: KeyPath) -> tuple[KeyStatus, str]:
        """What becomes of the value at ``path``, and why, by the first thing that says so."""
        rule = next((moved[above] for above in _parts(path) if above in moved), None)
        if rule is not None and rule.to is None:
            return KeyStatus.NEUTRAL, rule.why
        ours = path
        if rule is not None and rule.to is not None:
            ours = rule.to
        elif len(path) > 1 and (section := sections().get(str(path[0]))):
            ours = (path[0], aliases(section).get(str(path[1]), path[1]), *path[2:])
        for above in _parts(ours):
            if above in problems:
                return KeyStatus.REFUSED, problems[above]
        if rule is not None:
            return KeyStatus.ALIASED, rule.why or f"our {dotted(ours)}"
        if ours != path:
            return KeyStatus.ALIASED, f"our {dotted(ours)}"
        value = document.get(path)
        if path in TARGETS and (name := TARGETS[path](value)) != value:
            return KeyStatus.ALIASED, f"built in: {name}"
        if path == ("recipe",):
            return KeyStatus.NEUTRAL, "names the recipe that is built in"
        values, why = NEUTRAL.get(path, ((), ""))
        return (KeyStatus.NEUTRAL, why) if value in values else (KeyStatus.USED, "")

    found = []
    for path in _leaves(document.tree, ()):
        value, where = hidden(str(document.get(path))), document.mark(path).where
        found.append(KeyAccount(dotted(path), value, *status_of(path), where))
    said = {one.why for one in found}
    for path, text in problems.items():  # what is missing: a key that was not written
        if text not in said:
            where = document.mark(path).where
            found.append(KeyAccount(dotted(path), "", KeyStatus.REFUSED, text, where))
    return found


def _problems(document: Document, environ: Mapping[str, str]) -> dict[KeyPath, str]:
    """All problems: what is refused is left out and the rest checked again, until that holds."""
    found: dict[KeyPath, str] = {}
    while True:
        config, problems = examine(document, environ)
        if config is not None and not problems.found:
            problems, _ = unsuitable(Resolved(config, problems.document))
        new = {path: text for path, text in problems.found.items() if path not in found}
        found |= new
        rest = _without(problems.document, new)
        if not new or rest.tree == problems.document.tree:
            return found
        document = rest


def _without(document: Document, paths: Collection[KeyPath]) -> Document:
    tree = copy.deepcopy(document.tree)
    for path in paths:
        at: Any = tree
        for part in path[:-1]:
            at = at.get(part) if isinstance(at, dict) else None
        if isinstance(at, dict):
            at.pop(path[-1] if path else None, None)
    return replace(document, tree=tree)


def _parts(path: KeyPath) -> Iterator[KeyPath]:
    """What lies above ``path``, from the top, and ``path`` itself."""
    return (path[:end] for end in range(1, len(path) + 1))


def _leaves(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Paths of all values; a list, and an empty mapping, is one value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path


def account_text(found: Sequence[KeyAccount]) -> str:
    """One line for each key, and how many there were of each kind."""
    width = min(44, max((len(one.key) for one in found), default=0))
    lines = []
    for one in found:
        value = one.value if len(one.value) <= 60 else one.value[:57] + "..."
        place = f" ({one.where})" if one.status is KeyStatus.REFUSED else ""
        why = f"  -> {one.why}{place}" if one.why else ""
        lines.append(f"{one.status:<8} {one.key:<{width}}  {value}{why}".rstrip())
    counts = [f"{sum(one.status is kind for one in found)} {kind}" for kind in KeyStatus]
    return "\n".join([*lines, f"{len(found)} keys: {', '.join(counts)}"])
