"""YAML as it was written: plain values, and where each of them stands. Imports pyyaml only.

Stricter than ``yaml.safe_load``: a duplicate key is an error, ``24:00:00``, ``007``, ``on`` and
dates stay text (YAML 1.2), ``1e-4`` is a number, ``none`` is null.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from submitrain.config.placeholders import hidden
from submitrain.errors import ConfigError

KeyPath = tuple[str | int, ...]
"""Keys and list indices from the top: ``("wandb", "tags", 0)``."""


def dotted(path: KeyPath) -> str:
    """``wandb.tags.0``, the spelling of overrides and of messages."""
    return ".".join(str(part) for part in path)


@dataclass(frozen=True)
class Mark:
    """Where a value stands (``configs/a.yaml:12``) and, for a scalar, what was written there."""

    where: str
    text: str | None = None
    spelled: str | None = None
    """The key as the user wrote it, where it is an alias of ours."""


@dataclass(frozen=True)
class Document:
    """A tree of plain values (dict, list, str, int, float, bool, None) and their marks."""

    name: str
    tree: dict[str, Any]
    marks: Mapping[KeyPath, Mark] = field(default_factory=dict)

    def mark(self, path: KeyPath) -> Mark:
        """Mark of ``path``, of the nearest part above it, or of the first value inside."""
        for end in range(len(path), 0, -1):
            if path[:end] in self.marks:
                return self.marks[path[:end]]
        inside = (mark for known, mark in self.marks.items() if known[: len(path)] == path)
        return next(inside, Mark(self.name)) if path else Mark(self.name)

    def get(self, path: KeyPath) -> Any:
        """The value at ``path``, or None where there is none."""
        value: Any = self.tree
        for part in path:
            try:
                value = value[part]
            except (KeyError, IndexError, TypeError):
                return None
        return value


class StrictLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2, and ``none``."""

    yaml_implicit_resolvers: dict[str, list[tuple[str, re.Pattern[str]]]] = {}  # noqa: RUF012


class StrictDumper(yaml.SafeDumper):
    """Quotes every text that either YAML 1.1 or StrictLoader would read as something else."""


_SCALARS = [
    ("null", r"~|null|Null|NULL|none|None|NONE|", ["~", "n", "N", ""]),
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?(?:0|[1-9][0-9_]*|0x[0-9a-fA-F]+)", list("-+0123456789")),
    (
        "float",
        r"[-+]?(?:[0-9][0-9_]*\.[0-9_]*|\.[0-9]+|[0-9][0-9_]*(?=[eE]))(?:[eE][-+]?[0-9]+)?"
        r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)",
        list("-+0123456789."),
    ),
    ("merge", r"<<", ["<"]),
]
for _name, _pattern, _first in _SCALARS:
    for _class in (StrictLoader, StrictDumper):
        _class.add_implicit_resolver(
            f"tag:yaml.org,2002:{_name}", re.compile(rf"^(?:{_pattern})$"), _first
        )


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    """PyYAML writes Unicode's other line breaks unescaped, and reads them as spaces."""
    odd = any(character in text for character in "\x85\u2028\u2029\ufeff")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if odd else None)


StrictDumper.add_representer(str, _represent_text)


def read_document(path: Path) -> Document:
    """Read a YAML file whose top level is a mapping.

    Raises:
        ConfigError: no such file, a folder, not UTF-8, empty, not YAML, duplicate keys.
    """
    try:
        return parse_document(path.read_bytes().decode("utf-8-sig"), str(path))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file; {_similar_files(path)}") from error
    except IsADirectoryError as error:
        raise ConfigError(
            f"{path}: expected a YAML file, got a folder; name a file in it"
        ) from error
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: expected UTF-8 text, got byte 0x{error.object[error.start]:02x} at offset "
            f"{error.start}; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read: {error.strerror}; check its permissions"
        ) from error


def _similar_files(path: Path) -> str:
    """Which of a missing file's neighbours may be meant."""
    folder = path.parent
    if not folder.is_dir():
        above = folder.parent
        names = [one.name for one in above.iterdir() if one.is_dir()] if above.is_dir() else []
        near = [above / name / path.name for name in get_close_matches(folder.name, names, n=1)]
        guess = f"; did you mean {near[0]}?" if near and near[0].is_file() else ""
        return f"there is no folder {folder}{guess}"
    here = sorted(p.name for p in folder.glob("[!.]*.y*ml"))
    if near_names := get_close_matches(path.name, here, n=1):
        return f"did you mean {folder / near_names[0]}?"
    return f"{folder} has {', '.join(here[:8])}" if here else f"{folder} holds no YAML file"


def parse_document(text: str, name: str) -> Document:
    """Parse YAML text whose top level is a mapping; ``name`` stands in its marks.

    Raises:
        ConfigError: see ``read_document``.
    """
    tree, marks = _parse(text, name)
    if tree is None:
        raise ConfigError(
            f"{name}: expected a mapping of sections (model, dataset, slurm, ...), got an empty "
            "file; start from configs/quickstart.yaml"
        )
    if not isinstance(tree, dict):
        got = "a list" if isinstance(tree, list) else f"{type(tree).__name__} {tree!r}"
        raise ConfigError(
            f"{name}: expected a mapping of sections (model, dataset, slurm, ...) at the top "
            f"level, got {got}; write `section:` and indent its keys under it"
        )
    return Document(name, tree, marks)


def parse_value(text: str, name: str) -> tuple[Any, str | None]:
    """The value of one YAML expression and, for a scalar, its text; for overrides.

    Raises:
        ConfigError: not YAML; the message names ``name``.
    """
    tree, marks = _parse(text, name, one_place=True)
    return tree, marks[()].text if () in marks else None


def resolve_scalar(text: str) -> Any:
    """What StrictLoader makes of ``text`` as a plain scalar: number, truth, null or the text."""
    tag = StrictLoader("").resolve(yaml.ScalarNode, text, (True, False))  # type: ignore[no-untyped-call]
    if tag == "tag:yaml.org,2002:str" or tag.endswith(("merge", "value")):
        return text
    return StrictLoader("").construct_object(yaml.ScalarNode(tag, text))


def dump_yaml(tree: Any) -> str:
    """``tree`` as YAML in its own order, one key a line; StrictLoader reads back the same."""
    return yaml.dump(tree, Dumper=StrictDumper, sort_keys=False, allow_unicode=True, width=100)


def _parse(text: str, name: str, *, one_place: bool = False) -> tuple[Any, dict[KeyPath, Mark]]:
    try:
        loader = StrictLoader(text)
        node = loader.get_single_node()
    except yaml.YAMLError as error:
        raise ConfigError(_syntax_error(error, text, name, one_place)) from error
    if node is None:
        return None, {}
    builder = _Builder(loader, name, one_place)
    tree = builder.build(node, (), ())
    if builder.problems:
        raise ConfigError(*builder.problems)
    return tree, builder.marks


def _syntax_error(error: yaml.YAMLError, text: str, name: str, one_place: bool) -> str:
    """Where a text stops being YAML, what stands there, and what to look for."""
    if not isinstance(error, yaml.MarkedYAMLError):
        line = text.count("\n", 0, getattr(error, "position", 0)) + 1
        where = name if one_place else f"{name}:{line}"
        return f"{where}: not YAML: {getattr(error, 'reason', error)}; remove that character"
    mark = error.problem_mark or error.context_mark
    problem = error.problem or error.context or "cannot be parsed"
    if mark is None:
        return f"{name}: not YAML: {problem}"
    where = name if one_place else f"{name}:{mark.line + 1}:{mark.column + 1}"
    lines = text.splitlines()
    offending = lines[mark.line].strip() if mark.line < len(lines) else "the end of the file"
    if error.context and error.context_mark and error.context_mark.line != mark.line:
        problem += f" ({error.context} in line {error.context_mark.line + 1})"
    hint = (
        "put ${...} in quotes inside { } and [ ]"
        if "${" in offending
        else "look for a missing quote, colon, bracket or indent there"
    )
    return f"{where}: not YAML: {problem}, got `{hidden(offending)}`; {hint}"


class _Builder:
    """Turns composed nodes into plain values, noting marks and collecting problems."""

    def __init__(self, loader: StrictLoader, name: str, one_place: bool) -> None:
        self.loader, self.name, self.one_place = loader, name, one_place
        self.marks: dict[KeyPath, Mark] = {}
        self.problems: list[str] = []
        self.checked: set[int] = set()
        """Mappings whose keys were checked: an anchor's comes more than once."""

    def where(self, node: yaml.Node) -> str:
        return self.name if self.one_place else f"{self.name}:{node.start_mark.line + 1}"

    def build(self, node: yaml.Node, path: KeyPath, above: tuple[int, ...]) -> Any:
        if id(node) in above:
            self.problems.append(
                f"{dotted(path)}: an alias contains itself ({self.where(node)}); write it out"
            )
            return None
        text = node.value if isinstance(node, yaml.ScalarNode) else None
        self.marks.setdefault(path, Mark(self.where(node), text))
        inside = (*above, id(node))
        if isinstance(node, yaml.MappingNode):
            return self.mapping(node, path, inside)
        if isinstance(node, yaml.SequenceNode):
            return [self.build(item, (*path, i), inside) for i, item in enumerate(node.value)]
        try:
            value = self.loader.construct_object(node)
        except (yaml.YAMLError, ValueError) as error:
            reason = getattr(error, "problem", None) or str(error)
        else:
            if value is None or isinstance(value, str | int | float | bool):
                return value
            reason = f"tag {node.tag} makes a {type(value).__name__}"
        self.problems.append(
            f"{dotted(path)}: expected plain text, a number, true, false or none; {reason} "
            f"({self.where(node)}); remove the tag"
        )
        return None

    def mapping(self, node: yaml.MappingNode, path: KeyPath, above: tuple[int, ...]) -> Any:
        if id(node) not in self.checked:
            self.checked.add(id(node))
            self.refuse_duplicates(node, path)
        try:
            self.loader.flatten_mapping(node)
        except yaml.MarkedYAMLError as error:
            self.problems.append(f"{dotted(path)}: {error.problem} ({self.where(node)})")
            return {}
        tree = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                self.problems.append(
                    f"{dotted(path) or 'top level'}: expected text as a key, got a "
                    f"{'list' if isinstance(key, yaml.SequenceNode) else 'mapping'} "
                    f"({self.where(key)}); write key: value"
                )
                continue
            inner = (*path, key.value)
            if inner in self.marks:  # a merged value that is written anew
                self.marks = {k: m for k, m in self.marks.items() if k[: len(inner)] != inner}
            scalar = value.value if isinstance(value, yaml.ScalarNode) else None
            self.marks[inner] = Mark(self.where(key), scalar)
            tree[key.value] = self.build(value, inner, above)
        return tree

    def refuse_duplicates(self, node: yaml.MappingNode, path: KeyPath) -> None:
        first: dict[str, yaml.Node] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag.endswith(":merge"):
                continue
            if key.value in first:
                self.problems.append(
                    f"{dotted((*path, key.value))}: the key stands twice, at "
                    f"{self.where(first[key.value])} and {self.where(key)}; keep one of them"
                )
            first.setdefault(key.value, key)
