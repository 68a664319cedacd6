"""What the documents name exists: every test behind a guarantee, every file that is pointed to."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

from tests.faults.table import COURSES
from tests.paths import REPOSITORY

ROOT = REPOSITORY
GUARANTEES = ROOT / "docs/guarantees.md"
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
PROMISES, _, LISTED = GUARANTEES.read_text().partition("## Tests\n")
ENTRY = re.compile(r"^- \[(\d+)\] ((?:.+\n(?:  .+\n)*))", re.MULTILINE)
BEHIND = {int(number): text for number, text in ENTRY.findall(LISTED)}
"""The text of each numbered entry of the list of tests."""
TEST = re.compile(r"`(test_\w+)::(test_\w+)`")
ROW = re.compile(r"\brows? ((?:`[\w-]+`(?:,\s+)?)+)")
LINK = re.compile(r"\]\((?!https?:|#)([^)#]+)[^)]*\)")
PATH = re.compile(
    r"(?<![\w./])((?:submitrain|launcher|train|monitor|tests|benchmarks|docs|configs)/[\w./-]*\.(?:py|md|yaml))\b"
)


@cache
def defined_in(name: str) -> frozenset[str]:
    """Names of the test functions of one file of tests."""
    [path] = (ROOT / "tests").rglob(f"{name}.py")
    tree = ast.parse(path.read_text())
    return frozenset(node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def test_the_guarantees_and_the_list_of_tests_belong_together() -> None:
    cited = {int(number) for number in re.findall(r"\[(\d+)\](?!\()", PROMISES)}
    assert cited == set(BEHIND)
    assert sorted(BEHIND) == list(range(1, len(BEHIND) + 1))


@pytest.mark.parametrize("number", BEHIND)
def test_every_guarantee_has_tests_that_exist(number: int) -> None:
    named = TEST.findall(BEHIND[number])
    assert named or ROW.search(BEHIND[number]), "nothing is named"
    assert BEHIND[number].count("::") == len(named), "a name that is none"
    missing = [f"{file}::{test}" for file, test in named if test not in defined_in(file)]
    assert not missing


def test_every_row_that_is_named_is_in_the_fault_matrix() -> None:
    rows = {row.name for course in COURSES.values() for row in course.rows}
    named = {
        name
        for names in ROW.findall(GUARANTEES.read_text())
        for name in re.findall(r"`([\w-]+)`", names)
    }
    assert len(named) > 20
    assert named <= rows, named - rows


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_file_that_a_document_points_to_exists(document: Path) -> None:
    text = document.read_text()
    missing = [link for link in LINK.findall(text) if not (document.parent / link).exists()]
    missing += [path for path in PATH.findall(text) if not (ROOT / path).exists()]
    assert not missing
