"""What the configuration's model says of itself: sections, keys, aliases, allowed values.

Read by the checks and by the error messages, so neither repeats a key. Imports no torch.

JSON Schema of a configuration file, for editors: docs, defaults, every accepted spelling.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Iterator
from difflib import get_close_matches
from functools import cache
from typing import Annotated, Any, Union, get_args, get_origin

from pydantic import AliasChoices
from pydantic.fields import FieldInfo

from submitrain.config.alerts import LATE
from submitrain.config.automodel import REFUSED
from submitrain.config.document import KeyPath
from submitrain.config.run import RunConfig
from submitrain.config.types import Secret, Section, TargetSection

VERBATIM = LATE | frozenset(
    {
        ("slurm", "setup"),
        ("sample", "prompt"),
        ("dataset", "chat_template"),
        ("validation_dataset", "chat_template"),
        ("wandb", "notes"),
    }
)
"""Free text and shell, where ``${`` is no placeholder of ours, and what the monitor expands."""

ENVIRONMENT_ONLY = frozenset(
    {("slurm", "env"), ("slurm", "hf_token"), ("slurm", "wandb_key")},
)
"""Values that only ever reach the ranks' environment; their placeholders are never expanded."""


@cache
def sections() -> dict[str, type[Section]]:
    """Section classes by their key at the top level."""
    found = {}
    for name, info in RunConfig.model_fields.items():
        section = section_class(info.annotation)
        if section is not None:
            found[name] = section
    return found


def section_class(annotation: Any) -> type[Section] | None:
    """The Section that a field's annotation names, also as ``Section | None``."""
    options = get_args(annotation) or (annotation,)
    classes = [o for o in options if isinstance(o, type) and issubclass(o, Section)]
    return classes[0] if classes else None


@cache
def aliases(section: type[Section]) -> dict[str, str]:
    """Every accepted spelling of a key to the spelling that we write."""
    spellings: dict[str, str] = {}
    for name, info in section.model_fields.items():
        written = info.serialization_alias or info.alias or name
        spellings[name] = spellings[written] = written
        if isinstance(info.validation_alias, AliasChoices):
            for choice in info.validation_alias.choices:
                spellings[str(choice)] = written
        elif isinstance(info.validation_alias, str):
            spellings[info.validation_alias] = written
    return spellings


@cache
def keys(section: type[Section]) -> dict[str, FieldInfo]:
    """Fields of a section by the spelling that we write."""
    return {aliases(section)[name]: info for name, info in section.model_fields.items()}


def owner(path: KeyPath) -> type[Section] | None:
    """The section class in which the last part of ``path`` is a key, None below sections."""
    if len(path) == 1:
        return RunConfig
    return sections().get(str(path[0])) if len(path) == 2 else None


def field_at(path: KeyPath) -> FieldInfo | None:
    """The declared field that ``path`` names exactly (in our spelling), if any."""
    section = owner(path)
    return keys(section).get(str(path[-1])) if section else None


def is_free(path: KeyPath) -> bool:
    """Whether ``path`` lies in a component's own keys or in a mapping of anything."""
    section = sections().get(str(path[0])) if path else None
    if section is None or len(path) < 2:
        return False
    info = keys(section).get(str(path[1]))
    if info is None:
        return issubclass(section, TargetSection)
    return len(path) > 2 and dict[str, Any] in (get_args(info.annotation) or (info.annotation,))


def is_secret(path: KeyPath) -> bool:
    """Whether the field at ``path`` is of type Secret."""
    info = field_at(path)
    return info is not None and any(item in info.metadata for item in get_args(Secret)[1:])


def allows(info: FieldInfo, kind: type) -> bool:
    """Whether a field's annotation names ``kind`` (str, bool, int, NoneType ...)."""
    return kind in set(_kinds(info.annotation))


def _kinds(annotation: Any) -> Iterator[Any]:
    origin = get_origin(annotation)
    if origin is Annotated:
        yield from _kinds(get_args(annotation)[0])
    elif origin in (Union, types.UnionType):
        for option in get_args(annotation):
            yield from _kinds(option)
    else:
        yield origin or annotation


def every_key() -> Iterator[tuple[str, str]]:
    """All (section, key) pairs, with every spelling."""
    for name, section in sections().items():
        for spelling in aliases(section):
            yield name, spelling


def homes(key: str) -> list[str]:
    """Sections that know a key of this name, as ``section.key``."""
    return [f"{name}.{spelling}" for name, spelling in every_key() if spelling == key]


def near(word: str, words: Iterator[str] | list[str], cutoff: float = 0.7) -> str | None:
    """The one of ``words`` that ``word`` most likely means."""
    found = get_close_matches(word, [w for w in words if w != word], n=1, cutoff=cutoff)
    return found[0] if found else None


def unknown_key(path: KeyPath) -> str:
    """What to say of a key that nobody knows: its likely spelling or its home, else the list."""
    key, section = str(path[-1]), owner(path)
    if path in REFUSED:
        return REFUSED[path]
    known = aliases(section) if section else {}
    found = homes(key)
    if section is RunConfig and found:
        return f"unknown key; {key} belongs to a section: write {' or '.join(found)}"
    guess = near(key, list(known))
    if guess:
        return f"unknown key; did you mean {_place(path, guess)}?"
    if found:
        return f"unknown key; {key} is a key of another section: write {' or '.join(found)}"
    if key in sections():
        return f"unknown key; {key} is a section of its own: move it to the top level"
    elsewhere = near(key, [spelling for _, spelling in every_key()], cutoff=0.8)
    hint = f"did you mean {' or '.join(homes(elsewhere))}? " if elsewhere else ""
    listed = sorted(set(known.values()))
    return f"unknown key; {hint}allowed here: {', '.join(listed)}"


def _place(path: KeyPath, key: str) -> str:
    return ".".join([*(str(part) for part in path[:-1]), key])


@cache
def expected(path: KeyPath) -> str:
    """The allowed values at ``path`` in words: ``an integer >= 1 or none``."""
    section = owner(path) or (owner(path[:2]) if len(path) > 2 else None)
    if section is None:
        return "another value"
    schema = section.model_json_schema(by_alias=True)
    properties = schema.get("properties", {})
    name = str(path[1] if len(path) > 1 else path[0])
    field = next((n for n, i in section.model_fields.items() if i is field_at(path[:2])), name)
    part = properties.get(name) or properties.get(field) or _by_alias(properties, section, field)
    for step in path[2:]:
        options = part.get("anyOf", [part])
        inner = [_inside(option, str(step), schema) for option in options]
        part = next((i for i in inner if isinstance(i, dict)), {})
    return in_words(part)


def _inside(option: dict[str, Any], step: str, schema: dict[str, Any]) -> Any:
    """The schema of what lies at ``step`` in a section, a list or a mapping."""
    if "$ref" in option:
        section = schema["$defs"][option["$ref"].rpartition("/")[2]]
        return section.get("properties", {}).get(step)
    return option.get("items") or option.get("additionalProperties")


def _by_alias(properties: dict[str, Any], section: type[Section], field: str) -> dict[str, Any]:
    written = aliases(section).get(field)
    names = [spelling for spelling, target in aliases(section).items() if target == written]
    return next((dict(properties[name]) for name in names if name in properties), {})


_WORDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "object": "a mapping",
    "null": "none",
}


def in_words(schema: dict[str, Any]) -> str:
    """A JSON Schema of a field in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(in_words(option) for option in schema["anyOf"]))
    if "enum" in schema:
        # YAML reads a plain `off` as false: that is allowed, and nothing to write on purpose.
        return "one of " + ", ".join(str(value) for value in schema["enum"] if value is not False)
    if "const" in schema:
        return str(schema["const"])
    if "$ref" in schema or "allOf" in schema:
        return "a mapping (key: value)"
    kind = schema.get("type")
    if kind == "array":
        return f"a list of {in_words(schema.get('items', {}))}"
    if kind is None:
        return "any value"
    if "examples" in schema:
        return f"a range such as {schema['examples'][0]}"
    if "pattern" in schema:
        return f"text of the form {schema['pattern'].strip('^$')}"
    limits = [
        f"{sign} {schema[name]}"
        for name, sign in (
            ("minimum", ">="),
            ("exclusiveMinimum", ">"),
            ("maximum", "<="),
            ("exclusiveMaximum", "<"),
        )
        if name in schema
    ]
    return " and ".join([" ".join([_WORDS[kind], *limits[:1]]), *limits[1:]])


DIALECT = "https://json-schema.org/draft/2020-12/schema"
_PLACEHOLDER = {
    "type": "string",
    "pattern": r"\$\{(oc\.env:)?[A-Za-z_][A-Za-z0-9_]*(,[^{}]*)?\}",
    "description": "read from the environment: ${VAR} or ${VAR,default}",
}
_NONE = {"enum": ["none", "None", "NONE"]}


def editor_schema() -> dict[str, Any]:
    """The schema: what ``load_config`` accepts as values, and more only where text may say all.

    Placeholders are allowed wherever a value is not text anyway; ``none`` wherever null is.
    """
    schema = RunConfig.model_json_schema(by_alias=True)
    definitions = schema.get("$defs", {})
    for section in set(sections().values()):
        definition = definitions[section.__name__]
        definition["properties"] = _properties(section, definition["properties"])
    schema["properties"] = _properties(RunConfig, schema["properties"])
    return {"$schema": DIALECT, "title": "submitrain configuration", **schema}


def _properties(section: type[Section], given: dict[str, Any]) -> dict[str, Any]:
    """Properties under our spelling, then their aliases."""
    found: dict[str, Any] = {}
    for written in keys(section):
        spellings = [key for key, ours in aliases(section).items() if ours == written]
        source = next(given[key] for key in [written, *spellings] if key in given)
        if written == "_target_":  # aliases are matched by their last part: no list holds them
            source = {k: v for k, v in source.items() if k != "const"} | {"type": "string"}
        found[written] = _lenient(source)
        for spelling in spellings:
            if spelling not in (written, "target"):
                found[spelling] = {
                    **copy.deepcopy(found[written]),
                    "description": f"Same as {written}.",
                }
    return found


def _lenient(part: dict[str, Any]) -> dict[str, Any]:
    """``part``, or a placeholder, or the word none where null is allowed."""
    outside = {k: v for k, v in part.items() if k in ("description", "default", "title")}
    inside = {k: v for k, v in part.items() if k not in outside}
    options = list(inside.get("anyOf", [inside]))
    if any("$ref" in option for option in options):
        if any(option.get("type") == "null" for option in options):
            options.append(_NONE)
        return {**outside, "anyOf": options} if len(options) > 1 else part
    if any(option.get("type") == "null" for option in options):
        options.append(_NONE)
    if {"type": "string"} in options:
        options.append({"type": "number"})  # 0 and 007 are read as they are written
    if not any(_takes_placeholder(option) for option in options):
        options.append(_PLACEHOLDER)
    return {**outside, "anyOf": options} if len(options) > 1 else part


def _takes_placeholder(option: dict[str, Any]) -> bool:
    pattern = option.get("pattern")
    return option.get("type") == "string" and (pattern is None or pattern.startswith(r"^\$"))
