"""An account of every key of a configuration: used, another name for ours, neutral, or refused.

For configurations of NeMo AutoModel above all: ``plan CFG.yaml --keys``. Imports no torch.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from pathlib import Path
from typing import Any

from submitrain.config.automodel import (
    Translation,
    dataset_target,
    distributed_target,
    loader_target,
    model_target,
    peft_target,
    translate,
)
from submitrain.config.document import Document, KeyPath, dotted
from submitrain.config.placeholders import hidden
from submitrain.config.resolve import Resolved, examine
from submitrain.config.schema import aliases, sections
from submitrain.launcher.plan.config import read_source, unsuitable
from submitrain.launcher.plan.inputs import refuse_secrets
from submitrain.launcher.plan.overrides import apply_overrides

_NEUTRAL: dict[KeyPath, tuple[tuple[Any, ...], str]] = {
    ("distributed", "dp_size"): ((None, "none"), "the world size, as always"),
    ("distributed", "dp_replicate_size"): ((None, "none", 1), "one copy of the model, as always"),
    **{
        ("distributed", key): ((None, "none", 1, False), "asks for nothing")
        for key in ("tp_size", "cp_size", "pp_size", "ep_size", "sequence_parallel")
    },
    ("distributed", "use_hf_tp_plan"): ((None, "none", False), "asks for nothing"),
}


_SPELLINGS: dict[KeyPath, Callable[[object], object]] = {
    ("model", "_target_"): model_target,
    ("distributed", "_target_"): distributed_target,
    ("dataset", "_target_"): dataset_target,
    ("validation_dataset", "_target_"): dataset_target,
    ("dataloader", "_target_"): loader_target,
    ("validation_dataloader", "_target_"): loader_target,
    ("peft", "_target_"): peft_target,
}


class Fate(StrEnum):
    """What becomes of a key."""

    USED = "used"
    ALIASED = "aliased"
    NEUTRAL = "neutral"
    """Accepted, since it asks for what is done anyway."""
    REFUSED = "refused"


@dataclass(frozen=True)
class KeyFate:
    """One key as it was written, and what becomes of it."""

    key: str
    value: str
    fate: Fate
    why: str
    where: str


def account(
    source: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    *,
    environ: Mapping[str, str] | None = None,
) -> list[KeyFate]:
    """Every key in the order in which it was written; never raises for a key that is wrong.

    Raises:
        ConfigError: the file cannot be read at all, or it holds a secret.
    """
    environ = os.environ if environ is None else environ
    document, _ = read_source(source)
    document = apply_overrides(document, overrides)
    refuse_secrets(document)
    judge = _Judge(document, translate(document), _problems(document, environ))
    told = [judge.fate(path) for path in _leaves(document.tree, ())]
    return told + list(judge.left_over(told))


def _problems(document: Document, environ: Mapping[str, str]) -> dict[KeyPath, str]:
    """All problems: what is refused is left out and the rest looked at again, until that holds."""
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


@dataclass(frozen=True)
class _Judge:
    document: Document
    translation: Translation
    problems: Mapping[KeyPath, str]

    def fate(self, path: KeyPath) -> KeyFate:
        """What becomes of the value at ``path``, by the first thing that says so."""
        for end in range(1, len(path) + 1):
            if moved := self.translation.moved.get(path[:end]):
                if moved.to is None:
                    return self._of(path, Fate.NEUTRAL, moved.why)
                return self._aliased(path, moved.to, moved.why)
        ours = _ours(path)
        if why := self._problem(ours):
            return self._of(path, Fate.REFUSED, why)
        if ours != path:
            return self._aliased(path, ours)
        value = self.document.get(path)
        name = _SPELLINGS[path](value) if path in _SPELLINGS else value
        if name != value:
            return self._of(path, Fate.ALIASED, f"built in: {name}")
        if path == ("recipe",):
            return self._of(path, Fate.NEUTRAL, "names the recipe that is built in")
        values, why = _NEUTRAL.get(path, ((), ""))
        if value in values:
            return self._of(path, Fate.NEUTRAL, why)
        return self._of(path, Fate.USED, "")

    def left_over(self, told: Sequence[KeyFate]) -> Iterator[KeyFate]:
        """Problems of keys that were not written: what is missing."""
        said = {one.why for one in told}
        for path, text in self.problems.items():
            if text not in said:
                where = self.document.mark(path).where
                yield KeyFate(dotted(path), "", Fate.REFUSED, text, where)

    def _aliased(self, path: KeyPath, to: KeyPath, said: str = "") -> KeyFate:
        if why := self._problem(to):
            return self._of(path, Fate.REFUSED, why)
        return self._of(path, Fate.ALIASED, said or f"our {dotted(to)}")

    def _problem(self, path: KeyPath) -> str | None:
        return next(
            (self.problems[path[:n]] for n in range(1, len(path) + 1) if path[:n] in self.problems),
            None,
        )

    def _of(self, path: KeyPath, fate: Fate, why: str) -> KeyFate:
        value = hidden(str(self.document.get(path)))
        return KeyFate(dotted(path), value, fate, why, self.document.mark(path).where)


def _ours(path: KeyPath) -> KeyPath:
    section = sections().get(str(path[0]))
    if section is None or len(path) < 2:
        return path
    return (path[0], aliases(section).get(str(path[1]), path[1]), *path[2:])


def _leaves(value: Any, path: KeyPath) -> Iterator[KeyPath]:
    """Paths of all values; a list, and an empty mapping, is one value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, (*path, key))
    else:
        yield path


def text_of(told: Sequence[KeyFate]) -> str:
    """One line for each key, and how many there were of each kind."""
    width = min(44, max((len(one.key) for one in told), default=0))
    lines = [f"{one.fate:<8} {one.key:<{width}}  {_said(one)}".rstrip() for one in told]
    counts = [f"{sum(one.fate is fate for one in told)} {fate}" for fate in Fate]
    return "\n".join([*lines, f"{len(told)} keys: {', '.join(counts)}"])


def _said(one: KeyFate) -> str:
    value = one.value if len(one.value) <= 60 else one.value[:57] + "..."
    place = f" ({one.where})" if one.fate is Fate.REFUSED else ""
    return f"{value}  -> {one.why}{place}" if one.why else value


def as_json(told: Sequence[KeyFate]) -> list[dict[str, str]]:
    """For ``--json``."""
    return [{**asdict(one), "fate": str(one.fate)} for one in told]
