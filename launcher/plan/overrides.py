"""Changes on top of a configuration: ``a.b=c`` from a shell, keywords and mappings from Python.

Pure; every changed value is marked with the override it came from. Imports no torch.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from submitrain.config.document import Document, KeyPath, Mark, dotted, parse_value
from submitrain.config.placeholders import hidden, names_secret
from submitrain.config.schema import aliases, is_secret, sections
from submitrain.errors import ConfigError

_DOUBLE = re.compile(r"__(?=_target_)|__(?!_)")
"""What stands for a dot in a keyword: ``model__config__hidden_size``, ``model___target_``."""


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """``document`` with every ``a.b=c`` applied in turn.

    Raises:
        ConfigError: an override without ``=``, with a value that is not YAML, or whose path runs
            through something that has no keys.
    """
    problems: list[str] = []
    for override in overrides:
        where = f"override {_without_secret(override)}"
        try:
            path, value, text = _parse(override, where)
            document = _changed(document, path, value, Mark(where, text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return document


def apply_changes(document: Document, changes: Mapping[str, Any]) -> Document:
    """``document`` with Python values merged in; mappings are merged, all else replaces.

    Raises:
        ConfigError: a value is no plain data, or a path runs through something without keys.
    """
    for key, value in changes.items():
        path = tuple(part for part in _DOUBLE.sub(".", key).split(".") if part)
        plain = plain_tree_value(value, path)
        for inner, leaf in _leaves(plain, path):
            document = _changed(document, inner, leaf, Mark(f"argument {key}"))
    return document


def plain_tree(source: object) -> dict[str, Any]:
    """A mapping, RunConfig or dataclass as a tree of plain values.

    Raises:
        ConfigError: ``source`` is none of these, or holds a value that YAML could not hold.
    """
    tree = plain_tree_value(source, ())
    if not isinstance(tree, dict):
        raise ConfigError(
            "configuration: expected a path, a mapping, a RunConfig or a dataclass, got a "
            f"{type(source).__name__}"
        )
    return tree


def plain_tree_value(value: Any, path: KeyPath) -> Any:
    """``value`` as plain data: sections, dataclasses, paths, enums, dtypes and classes included.

    Raises:
        ConfigError: it cannot be written as YAML.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain_tree_value(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_tree_value(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, enum.Enum):
        return plain_tree_value(value.value, path)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, Path):
        return str(value)
    return _named(value, path)


def _named(value: Any, path: KeyPath) -> str:
    """A dtype, class or function by its import path."""
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module and name and "<" not in name and module != "__main__":
        return f"{module}.{name}"
    raise ConfigError(
        f"{dotted(path) or 'configuration'}: expected plain data (text, number, list, mapping) or "
        f"an importable class or function, got {value!r}; put it in a module of its own and give "
        "its import path"
    )


def _without_secret(override: str) -> str:
    """The override for a message; the value of what is a secret's key is left out."""
    key, equals, value = override.partition("=")
    secret = is_secret(tuple(key.split("."))) or names_secret(key.rpartition(".")[2])
    return f"{key}=..." if equals and secret and "${" not in value else hidden(override)


def _parse(override: str, where: str) -> tuple[KeyPath, Any, str | None]:
    key, equals, text = override.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(
            f"{where}: expected section.key=value, got no "
            f"{'key' if equals else '='}; write for example slurm.nodes=4"
        )
    if key[0] in "+~-":
        raise ConfigError(
            f"{where}: expected section.key=value, got a leading {key[0]}; write "
            f"{where.removeprefix('override ').lstrip('+~-')} (none unsets a key)"
        )
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(f"{where}: expected section.key=value, got an empty part of the key")
    value, written = parse_value(text, where)
    return tuple(parts), value, written


def _leaves(value: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
    """Mappings in Python changes are merged key by key."""
    if isinstance(value, dict) and value and len(path) < 3:
        return [leaf for key, item in value.items() for leaf in _leaves(item, (*path, key))]
    return [(path, value)]


def _changed(document: Document, path: KeyPath, value: Any, mark: Mark) -> Document:
    """A copy of ``document`` with ``value`` at ``path``; sections on the way are made."""
    path = _existing_spelling(document, path)
    tree = copy.deepcopy(document.tree)
    at: Any = tree
    real: list[str | int] = []
    for part in path[:-1]:
        step = _step(at, part, real, mark)
        if isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
        real.append(step)
    last = _step(at, path[-1], real, mark)
    at[last] = value
    target = (*real, last)
    marks = {old: m for old, m in document.marks.items() if old[: len(target)] != target}
    marks[target] = mark
    return Document(document.name, tree, marks)


def _existing_spelling(document: Document, path: KeyPath) -> KeyPath:
    """An override of ``dataset.max_length`` replaces a ``dataset.seq_length`` in the file."""
    section = sections().get(str(path[0]))
    given = document.tree.get(str(path[0]))
    if section is None or len(path) < 2 or not isinstance(given, dict):
        return path
    spellings = aliases(section)
    ours = spellings.get(str(path[1]))
    same = [key for key in given if ours and spellings.get(key) == ours]
    return (path[0], same[0], *path[2:]) if same else path


def _step(at: Any, part: str | int, above: list[str | int], mark: Mark) -> str | int:
    name = dotted(tuple(above)) or "the top level"
    if isinstance(at, dict):
        return str(part)
    if isinstance(at, list):
        if str(part).isdigit() and int(part) < len(at):
            return int(part)
        raise ConfigError(
            f"{mark.where}: {name} is a list of {len(at)}: expected an index below {len(at)}, "
            f"got {part}"
        )
    raise ConfigError(f"{mark.where}: {name} is no mapping and has no keys; override {name} itself")
