"""One rule: which line means which failure. Literals decide quickly, an expression exactly."""

from __future__ import annotations

import re
from dataclasses import dataclass

from monitor.diagnose.model import FailureClass, Trust


@dataclass(frozen=True)
class Rule:
    """A line that holds one of ``literals`` (lower case) and matches ``pattern`` means ``kind``.

    ``any_level``: the rule also holds on lines that a logger marks as information or warning.
    """

    kind: FailureClass
    trust: Trust
    literals: tuple[str, ...]
    pattern: re.Pattern[str] | None
    any_level: bool = False

    def matches(self, line: str, lowered: str) -> bool:
        """Whether ``line`` (and ``lowered``, the same in lower case) says so."""
        if not any(literal in lowered for literal in self.literals):
            return False
        return self.pattern is None or self.pattern.search(line) is not None


def rule(
    kind: FailureClass,
    trust: Trust,
    literals: str,
    pattern: str = "",
    *,
    any_level: bool = False,
    exact_case: bool = False,
) -> Rule:
    """A rule; ``literals`` are separated by ``|``, an empty ``pattern`` makes them suffice."""
    flags = re.NOFLAG if exact_case else re.IGNORECASE
    compiled = re.compile(pattern, flags) if pattern else None
    return Rule(kind, trust, tuple(literals.split("|")), compiled, any_level)
