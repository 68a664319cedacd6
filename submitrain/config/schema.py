"""What the configuration's model says of itself: sections, keys, aliases, allowed values.

Read by the checks, the error messages, ``explain`` and completion, so that none repeats a key; and
the JSON Schema of a configuration file, for editors. Imports no torch.
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
from submitrain.config.document import KeyPath, dotted
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
    found = {name: section_class(info) for name, info in RunConfig.model_fields.items()}
    return {name: section for name, section in found.items() if section is not None}


def section_class(info: FieldInfo) -> type[Section] | None:
    """The Section that a field holds, also as ``Section | None``."""
    options = get_args(info.annotation) or (info.annotation,)
    return next((o for o in options if isinstance(o, type) and issubclass(o, Section)), None)


def section_at(path: KeyPath) -> type[Section] | None:
    """The section at ``path``: RunConfig for the empty one; None where there is no section."""
    section: type[Section] | None = RunConfig
    for part in path:
        info = keys(section).get(str(part)) if section else None
        section = section_class(info) if info else None
    return section


@cache
def aliases(section: type[Section]) -> dict[str, str]:
    """Every accepted spelling of a key to the spelling that we write."""
    spellings: dict[str, str] = {}
    for name, info in section.model_fields.items():
        written = info.alias or name
        choices = info.validation_alias
        others = choices.choices if isinstance(choices, AliasChoices) else []
        spellings |= {str(key): written for key in (name, written, *others)}
    return spellings


@cache
def keys(section: type[Section]) -> dict[str, FieldInfo]:
    """Fields of a section by the spelling that we write."""
    return {aliases(section)[name]: info for name, info in section.model_fields.items()}


def field_at(path: KeyPath) -> FieldInfo | None:
    """The declared field that ``path`` names exactly (in our spelling), if any."""
    section = section_at(path[:-1])
    return keys(section).get(str(path[-1])) if section and path else None


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

    def kinds(annotation: Any) -> Iterator[Any]:
        origin = get_origin(annotation)
        if origin in (Annotated, Union, types.UnionType):
            for option in get_args(annotation)[: 1 if origin is Annotated else None]:
                yield from kinds(option)
        else:
            yield origin or annotation

    return kind in set(kinds(info.annotation))


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
    key, section = str(path[-1]), section_at(path[:-1])
    if path in REFUSED:
        return REFUSED[path]
    known = aliases(section) if section else {}
    found = homes(key)
    if section is RunConfig and found:
        return f"unknown key; {key} belongs to a section: write {' or '.join(found)}"
    if guess := near(key, list(known)):
        return f"unknown key; did you mean {dotted((*path[:-1], guess))}?"
    if found:
        return f"unknown key; {key} is a key of another section: write {' or '.join(found)}"
    if key in sections():
        return f"unknown key; {key} is a section of its own: move it to the top level"
    elsewhere = near(key, [spelling for _, spelling in every_key()], cutoff=0.8)
    hint = f"did you mean {' or '.join(homes(elsewhere))}? " if elsewhere else ""
    return f"unknown key; {hint}allowed here: {', '.join(sorted(set(known.values())))}"


@cache
def _json_schema(section: type[Section]) -> dict[str, Any]:
    return section.model_json_schema(by_alias=True)


def expected(path: KeyPath) -> str:
    """The allowed values at ``path`` in words: ``an integer >= 1 or none``."""
    end = len(path)
    while end > 1 and section_at(path[: end - 1]) is None:
        end -= 1
    part = _json_schema(section_at(path[: end - 1]) or RunConfig)["properties"].get(
        str(path[end - 1]) if path else "", {}
    )
    for _ in path[end:]:  # into a list, or a mapping of anything
        options = part.get("anyOf", [part])
        inside = [one.get("items") or one.get("additionalProperties") for one in options]
        part = next((one for one in inside if isinstance(one, dict)), {})
    return in_words(part)


_WORDS = {
    "integer": "an integer",
    "number": "a number",
    "string": "text",
    "boolean": "true or false",
    "object": "a mapping",
    "null": "none",
}
_LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


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
    limits = [f"{sign} {schema[name]}" for name, sign in _LIMITS.items() if name in schema]
    return " and ".join([" ".join([_WORDS[kind], *limits[:1]]), *limits[1:]])


_PLACEHOLDER = {
    "type": "string",
    "pattern": r"\$\{(oc\.env:)?[A-Za-z_][A-Za-z0-9_]*(,[^{}]*)?\}",
    "description": "read from the environment: ${VAR} or ${VAR,default}",
}
_NONE = {"enum": ["none", "None", "NONE"]}


def editor_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a configuration file: docs, defaults, every spelling.

    It accepts what ``load_config`` accepts as values, and more only where text may say all:
    placeholders wherever a value is not text anyway; ``none`` wherever null is.
    """
    schema = RunConfig.model_json_schema(by_alias=True)
    for section in set(sections().values()):
        definition = schema["$defs"][section.__name__]
        definition["properties"] = _with_spellings(section, definition["properties"])
    schema["properties"] = _with_spellings(RunConfig, schema["properties"])
    dialect = "https://json-schema.org/draft/2020-12/schema"
    return {"$schema": dialect, "title": "submitrain configuration", **schema}


def _with_spellings(section: type[Section], given: dict[str, Any]) -> dict[str, Any]:
    """Properties under our spelling, then their aliases."""
    found: dict[str, Any] = {}
    for written in keys(section):
        source = given[written]
        if written == "_target_":  # aliases are matched by their last part: no list holds them
            source = {k: v for k, v in source.items() if k != "const"} | {"type": "string"}
        found[written] = _lenient(source)
        for spelling, ours in aliases(section).items():
            if ours == written and spelling not in (written, "target"):
                same = {"description": f"Same as {written}."}
                found[spelling] = {**copy.deepcopy(found[written]), **same}
    return found


def _lenient(part: dict[str, Any]) -> dict[str, Any]:
    """``part``, or a placeholder, or the word none where null is allowed."""
    outside = {k: v for k, v in part.items() if k in ("description", "default", "title")}
    inside = {k: v for k, v in part.items() if k not in outside}
    options = list(inside.get("anyOf", [inside]))
    section = any("$ref" in option for option in options)
    if any(option.get("type") == "null" for option in options):
        options.append(_NONE)
    if not section and {"type": "string"} in options:
        options.append({"type": "number"})  # 0 and 007 are read as they are written
    takes_placeholder = any(
        one.get("type") == "string" and str(one.get("pattern", r"^\$")).startswith(r"^\$")
        for one in options
    )
    if not section and not takes_placeholder:
        options.append(_PLACEHOLDER)
    return {**outside, "anyOf": options} if len(options) > 1 else part
