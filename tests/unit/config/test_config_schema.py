"""The exported JSON Schema: what an editor needs to complete, explain and check a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from submitrain.config.schema import aliases, editor_schema, expected, sections
from tests.paths import TESTS

HERE = TESTS
FILES = [HERE / "data" / "automodel_4x8.yaml", *sorted((HERE.parent / "configs").glob("*.yaml"))]


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    return editor_schema()


def properties(schema: dict[str, Any], section: str) -> dict[str, Any]:
    """Properties of a section, through its ``$ref``."""
    part = schema["properties"][section]
    options = part.get("anyOf", [part])
    reference = next(option["$ref"] for option in options if "$ref" in option)
    found: dict[str, Any] = schema["$defs"][reference.rpartition("/")[2]]["properties"]
    return found


def accepts(part: dict[str, Any], value: Any) -> bool:
    """Whether a property's schema takes a scalar; only the keywords that ours uses."""
    import re

    if "anyOf" in part:
        return any(accepts(option, value) for option in part["anyOf"])
    if "enum" in part:
        return value in part["enum"]
    if "const" in part:
        return bool(value == part["const"])
    kinds: dict[str, Any] = {
        "integer": lambda v: isinstance(v, int) and not isinstance(v, bool),
        "number": lambda v: isinstance(v, int | float) and not isinstance(v, bool),
        "string": lambda v: isinstance(v, str) and bool(re.search(part.get("pattern", ""), v)),
        "boolean": lambda v: isinstance(v, bool),
        "null": lambda v: v is None,
        "array": lambda v: isinstance(v, list),
        "object": lambda v: isinstance(v, dict),
    }
    if "type" not in part or not kinds[part["type"]](value):
        return False
    return bool(value >= part.get("minimum", value)) if part["type"] == "integer" else True


def test_it_is_json_and_names_its_dialect(schema: dict[str, Any]) -> None:
    assert json.loads(json.dumps(schema)) == schema
    assert schema["$schema"].endswith("2020-12/schema")


def test_every_key_has_a_doc(schema: dict[str, Any]) -> None:
    for section in sections():
        for key, part in properties(schema, section).items():
            assert part.get("description"), f"{section}.{key}"


def test_every_key_that_may_be_left_out_has_its_default(schema: dict[str, Any]) -> None:
    for section in sections():
        for key, part in properties(schema, section).items():
            assert "default" in part or (section, key) in {
                ("sample", "prompt"),
                ("entry", "_target_"),
            }, f"{section}.{key}"


def test_every_spelling_is_a_property(schema: dict[str, Any]) -> None:
    for name, section in sections().items():
        assert set(aliases(section)) - {"target"} <= set(properties(schema, name))


def test_unknown_keys_are_errors_in_the_editor_too(schema: dict[str, Any]) -> None:
    assert schema["additionalProperties"] is False
    assert schema["$defs"]["SlurmConfig"]["additionalProperties"] is False
    assert schema["$defs"]["OptimizerConfig"]["additionalProperties"] is True


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_valid_files_have_no_errors_in_the_editor(path: Path, schema: dict[str, Any]) -> None:
    for section, keys in yaml.safe_load(path.read_text()).items():
        if not isinstance(keys, dict):
            assert accepts(schema["properties"][section], keys), section
            continue
        known = properties(schema, section)
        for key, value in keys.items():
            # YAML 1.1, which most editors speak, reads 24:00:00 as 86400 and 1e-4 as text.
            read = float(value) if key in ("lr", "min_lr") else value
            assert key not in known or accepts(known[key], read), f"{section}.{key}: {value!r}"


@pytest.mark.parametrize("value", [100, "auto", None])
def test_steps_between_checkpoints_may_be_automatic(value: Any, schema: dict[str, Any]) -> None:
    assert accepts(properties(schema, "step_scheduler")["ckpt_every_steps"], value)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("slurm", "nodes", 0),
        ("slurm", "nodes", "many"),
        ("step_scheduler", "ckpt_every_steps", "often"),
        ("step_scheduler", "ckpt_every_steps", 0),
        ("slurm", "hf_token", "hf_literal"),
        ("model", "torch_dtype", "int8"),
        ("lr_scheduler", "lr_decay_style", "cos"),
    ],
)
def test_wrong_values_are_errors_in_the_editor(
    section: str, key: str, value: Any, schema: dict[str, Any]
) -> None:
    assert not accepts(properties(schema, section)[key], value)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        (("resilience", "hang", "step_s"), "an integer >= 0 or none"),
        (("resilience", "loss_spike"), "one of off, warn, skip, rollback"),
        (("slurm", "srun_args", 0), "text"),
    ],
)
def test_what_is_expected_is_known_at_every_depth(path: tuple[str | int, ...], words: str) -> None:
    assert expected(path) == words
