"""JSON Schema of a configuration file, for editors: docs, defaults, every accepted spelling."""

from __future__ import annotations

import copy
from typing import Any

from train.config import RunConfig
from train.config.base import Section
from train.config.schema import aliases, keys, sections

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
