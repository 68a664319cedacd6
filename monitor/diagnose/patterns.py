"""The tables of ``tables/``: which line means which failure, which lines are harmless, what to do.

A row ``[id]`` of a table means: a line that holds one of the ``literals`` (lower case) and matches
one of the alternatives of ``expression`` (literals suffice where there is none) speaks of that
``class`` of failure, and may be trusted so far (``trust``, see ``model.Trust``). ``any_level``:
also on lines that a logger marks as information or warning; ``exact_case``: case counts.
A new rule is one row; a new class is one member of ``model.FailureClass``, its row in
``advice.toml``, and a rule.
"""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.monitor.diagnose.model import FailureClass, Trust

_TABLES = (
    *("container", "slurm", "memory", "gpu", "nccl", "numbers", "files", "dataloader"),
    *("imports", "access", "network", "config", "process"),
)


@dataclass(frozen=True)
class Rule:
    """A line that holds one of ``literals`` and matches ``pattern`` means ``kind``."""

    id: str
    kind: FailureClass
    trust: Trust
    literals: tuple[str, ...]
    pattern: re.Pattern[str] | None
    any_level: bool

    def matches(self, line: str, lowered: str) -> bool:
        """Whether ``line`` (and ``lowered``, the same in lower case) says so."""
        if not any(literal in lowered for literal in self.literals):
            return False
        return self.pattern is None or self.pattern.search(line) is not None


@dataclass(frozen=True)
class Advice:
    """What a class of failure means, and what to do about it."""

    happened: str
    step: str
    advice: str


def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((Path(__file__).parent / "tables" / f"{name}.toml").read_text("utf-8"))


def _rule(rule_id: str, row: dict[str, Any]) -> Rule:
    """One row.

    Raises:
        KeyError, ValueError: something in it is missing or unknown.
    """
    kind, trust = FailureClass(row.pop("class")), Trust[row.pop("trust").upper()]
    literals, alternatives = tuple(row.pop("literals")), row.pop("expression", [])
    flags = re.NOFLAG if row.pop("exact_case", False) else re.IGNORECASE
    pattern = re.compile("|".join(alternatives), flags) if alternatives else None
    any_level = row.pop("any_level", False)
    if row:
        raise ValueError(f"{rule_id}: unknown keys: {', '.join(row)}")
    return Rule(rule_id, kind, trust, literals, pattern, any_level)


RULES = tuple(_rule(rule_id, row) for name in _TABLES for rule_id, row in _read(name).items())
"""In the order of precedence for one line: of several rules that match it, the most trusted one
holds, and of equals the first."""
ADVICE = {FailureClass(name): Advice(**row) for name, row in _read("advice").items()}
HARMLESS = {
    name: re.compile(text, re.VERBOSE | (re.IGNORECASE if name == "benign" else re.NOFLAG))
    for name, text in _read("harmless").items()
}
