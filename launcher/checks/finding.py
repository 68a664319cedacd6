"""One answer of a check. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How a finding bears on a training here, from good to bad."""

    OK = "ok"
    UNKNOWN = "unknown"
    WARN = "warn"
    FAIL = "fail"


@dataclass(frozen=True)
class Finding:
    """What was looked at, what was seen, and what to do about it (empty when nothing is)."""

    id: str
    level: Level
    evidence: str
    remedy: str = ""

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "level": str(self.level)}


def ok(id: str, evidence: str) -> Finding:
    return Finding(id, Level.OK, evidence)


def warn(id: str, evidence: str, remedy: str) -> Finding:
    return Finding(id, Level.WARN, evidence, remedy)


def fail(id: str, evidence: str, remedy: str) -> Finding:
    return Finding(id, Level.FAIL, evidence, remedy)


def unknown(id: str, evidence: str, remedy: str = "") -> Finding:
    return Finding(id, Level.UNKNOWN, evidence, remedy)


def worst(findings: Iterable[Finding]) -> Level:
    """The worst level; ok for no findings."""
    order = list(Level)
    return max((one.level for one in findings), key=order.index, default=Level.OK)
