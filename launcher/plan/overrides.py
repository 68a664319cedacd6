"""What comes from Python or a shell: objects as configurations, and changes on top of one.

Every changed value is marked with the override it came from. Pure; imports no torch.
"""

from __future__ import annotations

import copy
import dataclasses
import enum
import inspect
import re
import sys
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


def as_config(
    source: str | Path | Mapping[str, Any] | object, changes: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """``source`` and ``changes`` with every training function replaced by an ``entry`` naming it.

    Ranks import the function by its path, in processes of their own and on other machines, so only
    one that lies in a module can be launched. Nothing is pickled.

    Raises:
        ConfigError: a function that ranks cannot import, with the way out.
    """

    def with_entry(tree: Mapping[str, Any]) -> dict[str, Any]:
        entry = tree.get("entry")
        return (
            {**tree, "entry": {"_target_": import_path(entry)}} if _is_function(entry) else {**tree}
        )

    if _is_function(source):
        source = {"entry": source}
    return (with_entry(source) if isinstance(source, Mapping) else source), with_entry(changes)


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def import_path(function: Any) -> str:
    """``my_package.training.main``, by which ranks import ``function``.

    Raises:
        ConfigError: it has no such path: a lambda, a method, a nested function, one of a notebook
            or of the script that is running.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not inspect.isfunction(function) or not module or not name:
        raise ConfigError(
            f"entry: expected a plain function, got {function!r}; ranks import it by its path: "
            "write a function in a module, and give it what it needs as keys of entry"
        )
    what = name if name.isidentifier() else "it"
    file = getattr(sys.modules["__main__"], "__file__", None)
    if module == "__main__" and file is None:
        raise ConfigError(
            f"entry: expected a function of a module, got {name} of this notebook or prompt, which "
            "ranks cannot import; begin its cell with `%%writefile my_training.py`, run it, then "
            f"`from my_training import {what}` and launch that"
        )
    if module == "__main__":
        raise ConfigError(
            f"entry: expected a function of a module, got {name} of the script that is running "
            f"({file}), which ranks would run again to import it; move {what} into a module beside "
            f"it, such as {Path(str(file)).stem}_training.py, and launch that"
        )
    if "<" in name or "." in name:
        raise ConfigError(
            f"entry: expected a function at the top level of a module, got {module}.{name}; ranks "
            "import it by its path: move it out of the function or class around it"
        )
    return f"{module}.{name}"


def apply_overrides(document: Document, overrides: Sequence[str]) -> Document:
    """``document`` with every ``a.b=c`` applied in turn.

    Raises:
        ConfigError: an override without ``=``, with a value that is not YAML, or whose path runs
            through something that has no keys.
    """
    problems: list[str] = []
    for override in overrides:
        key, equals, value = override.partition("=")
        secret = is_secret(tuple(key.split("."))) or names_secret(key.rpartition(".")[2])
        shown = f"{key}=..." if equals and secret and "${" not in value else hidden(override)
        try:
            path, value, text = _parse(override, shown)
            document = _changed(document, path, value, Mark(f"override {shown}", text))
        except ConfigError as error:
            problems += error.problems
    if problems:
        raise ConfigError(*problems)
    return document


def _parse(override: str, shown: str) -> tuple[KeyPath, Any, str | None]:
    key, equals, text = override.partition("=")
    key, where = key.strip(), f"override {shown}"
    if not equals or not key:
        raise ConfigError(
            f"{where}: expected section.key=value, got no "
            f"{'key' if equals else '='}; write for example slurm.nodes=4"
        )
    if key[0] in "+~-":
        raise ConfigError(
            f"{where}: expected section.key=value, got a leading {key[0]}; write "
            f"{shown.lstrip('+~-')} (none unsets a key)"
        )
    parts = key.split(".")
    if not all(parts):
        raise ConfigError(f"{where}: expected section.key=value, got an empty part of the key")
    value, written = parse_value(text, where)
    return tuple(parts), value, written


def apply_changes(document: Document, changes: Mapping[str, Any]) -> Document:
    """``document`` with Python values merged in; mappings are merged, all else replaces.

    Raises:
        ConfigError: a value is no plain data, or a path runs through something without keys.
    """

    def leaves(value: Any, path: KeyPath) -> list[tuple[KeyPath, Any]]:
        if isinstance(value, dict) and value and len(path) < 3:
            return [leaf for key, item in value.items() for leaf in leaves(item, (*path, key))]
        return [(path, value)]

    for key, value in changes.items():
        path = tuple(part for part in _DOUBLE.sub(".", key).split(".") if part)
        for inner, leaf in leaves(plain_value(value, path), path):
            document = _changed(document, inner, leaf, Mark(f"argument {key}"))
    return document


def _changed(document: Document, path: KeyPath, value: Any, mark: Mark) -> Document:
    """A copy of ``document`` with ``value`` at ``path``; sections on the way are made."""
    path = _existing_spelling(document, path)
    tree = copy.deepcopy(document.tree)
    at: Any = tree
    target: KeyPath = ()
    for part in path:
        above = dotted(target) or "the top level"
        step: str | int = str(part)
        if isinstance(at, list):
            if not (str(part).isdigit() and int(part) < len(at)):
                raise ConfigError(
                    f"{mark.where}: {above} is a list of {len(at)}: expected an index below "
                    f"{len(at)}, got {part}"
                )
            step = int(part)
        elif not isinstance(at, dict):
            raise ConfigError(
                f"{mark.where}: {above} is no mapping and has no keys; override {above} itself"
            )
        target = (*target, step)
        if len(target) == len(path):
            at[step] = value
        elif isinstance(at, dict) and at.get(step) is None:
            at[step] = {}
        at = at[step]
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


def plain_tree(source: object) -> dict[str, Any]:
    """A mapping, RunConfig or dataclass as a tree of plain values.

    Raises:
        ConfigError: ``source`` is none of these, or holds a value that YAML could not hold.
    """
    tree = plain_value(source, ())
    if not isinstance(tree, dict):
        raise ConfigError(
            "configuration: expected a path, a mapping, a RunConfig or a dataclass, got a "
            f"{type(source).__name__}"
        )
    return tree


def plain_value(value: Any, path: KeyPath) -> Any:
    """``value`` as plain data; dtypes, classes and functions are named by their import path.

    Raises:
        ConfigError: it cannot be written as YAML.
    """
    if isinstance(value, BaseModel):
        value = value.model_dump(mode="json", by_alias=True, exclude_unset=True)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = dataclasses.asdict(value)
    if isinstance(value, Mapping):
        return {str(key): plain_value(item, (*path, str(key))) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain_value(item, (*path, i)) for i, item in enumerate(value)]
    if isinstance(value, enum.Enum):
        return plain_value(value.value, path)
    if value is None or isinstance(value, str | bool | int | float):
        return value
    dtype = type(value).__module__ == "torch" and type(value).__name__ == "dtype"
    if isinstance(value, Path) or dtype:
        return str(value)
    module, name = getattr(value, "__module__", None), getattr(value, "__qualname__", None)
    if module and name and "<" not in name and module != "__main__":
        return f"{module}.{name}"
    raise ConfigError(
        f"{dotted(path) or 'configuration'}: expected plain data (text, number, list, mapping) or "
        f"an importable class or function, got {value!r}; put it in a module of its own and give "
        "its import path"
    )
