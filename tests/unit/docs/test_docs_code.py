"""No document shows a command, an option, a key, a block or a message that does not exist."""

from __future__ import annotations

import ast
import importlib
import re
import tomllib
from pathlib import Path

import pytest

from submitrain.config import RunConfig
from submitrain.config.document import parse_document
from submitrain.config.resolve import resolve
from submitrain.launcher import Run
from submitrain.monitor.accounting.prices import parse_prices
from tests.documents import (
    DOCUMENTS,
    ROOT,
    Block,
    blocks,
    command_problem,
    inline,
    key_problem,
    message_problem,
)

TROUBLE = ROOT / "docs" / "troubleshooting.md"
LANGUAGES = {"", "console", "bash", "yaml", "python", "text"}
FOREIGN_KEYS = {"automodel.md", "assess.md"}
"""Pages about another project's keys (`test_keys.py` holds those to the code), and about findings,
whose ids look like keys."""


def of(language: str) -> list[Block]:
    """All blocks of a language."""
    return [block for block in blocks() if block.language == language]


def test_every_block_says_what_it_is() -> None:
    odd = [block.where for block in blocks() if block.language not in LANGUAGES]
    assert not odd


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_options_and_keys_exist(document: Path) -> None:
    lines = [line for block in blocks() if block.document == document for line in block.commands()]
    problems = [command_problem(line) for line in [*lines, *inline(document)]]
    if document.name not in FOREIGN_KEYS:
        problems += [key_problem(text) for text in inline(document)]
    assert not list(filter(None, problems))


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("python -m launcher pln cfg.yaml", "no command pln"),
        ("python -m launcher plan cfg.yaml --jsn", "plan has no option --jsn"),
        ("python -m launcher cfg.yaml slurm.tme=1h  # comment", "did you mean slurm.time?"),
        ("cat x | python -m monitor diagnos -", "no command diagnos"),
        ("python -m monitor cost --by week", "cannot be parsed"),
        ("python -m launcher status a b", "not understood: b"),
        ("python -m tests.nothing", "there is no tests.nothing"),
        ("make coffee", "no target coffee"),
    ],
)
def test_a_wrong_command_would_be_found(line: str, problem: str) -> None:
    assert problem in str(command_problem(line))


@pytest.mark.parametrize("block", of("yaml"), ids=lambda block: block.where)
def test_yaml_blocks_are_configurations_or_prices(block: Block) -> None:
    document = parse_document(block.text, block.where)
    if "prices" in document.tree:
        assert parse_prices(block.text, block.where)
        return
    assert set(document.tree) <= set(RunConfig.model_fields)
    names = re.findall(r"\$\{(?:oc\.env:)?(\w+)", block.text)
    resolve(document, dict.fromkeys(names, "1"))


@pytest.mark.parametrize("block", of("python"), ids=lambda block: block.where)
def test_python_blocks_import_and_call_what_exists(block: Block) -> None:
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module:
            module = importlib.import_module(node.module)
            assert all(hasattr(module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "run":
            assert hasattr(Run, node.attr), f"Run has no {node.attr}"


def test_extras_that_are_named_exist() -> None:
    extras = set(
        tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    )
    for document in DOCUMENTS:
        for listed in re.findall(r"(?:submitrain|\.)\[([a-z,]+)\]'", document.read_text()):
            assert set(listed.split(",")) <= extras, document.name


def messages() -> list[str]:
    """Messages that the page of symptoms quotes: blocks of plain text, one message a line."""
    found = [line for block in of("text") if block.document == TROUBLE for line in
             block.text.splitlines() if line.strip()]  # fmt: skip
    return [line.removeprefix("error: ") for line in found]


@pytest.mark.parametrize("message", messages())
def test_a_message_that_is_quoted_is_one_of_ours(message: str) -> None:
    assert message_problem(message) is None


def test_a_message_that_nobody_says_would_be_found() -> None:
    assert len(messages()) >= 15
    assert message_problem("slurm: sbatch refused the cake: ...") is not None
