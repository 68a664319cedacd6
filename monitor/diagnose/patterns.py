"""What the rows of the pattern tables are made of. Pure.

A row is ``"id": trust(class, literals, expression)``: a line that holds one of the ``literals``
(lower case, separated by ``|``) and matches ``expression`` (literals suffice where it is empty)
means that class of failure, as far as the line can be trusted. The tables are
``patterns_cluster``, ``patterns_gpu``, ``patterns_files`` and ``patterns_program``; what to do
about a class is in ``remedy``. A new rule is one row, a new class one member and one advice more.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import partial

from submitrain.monitor.diagnose.model import FailureClass, Trust


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


Table = dict[str, Rule]
"""By id. In the order of precedence: of equally trusted rules that match a line the first holds."""


def _rule(
    trust: Trust,
    kind: FailureClass,
    literals: str,
    expression: str = "",
    *,
    any_level: bool = False,
    exact_case: bool = False,
) -> Rule:
    flags = re.NOFLAG if exact_case else re.IGNORECASE
    compiled = re.compile(expression, flags) if expression else None
    return Rule(kind, trust, tuple(literals.split("|")), compiled, any_level)


scheduler = partial(_rule, Trust.SCHEDULER, any_level=True)
kernel = partial(_rule, Trust.KERNEL, any_level=True)
cause = partial(_rule, Trust.CAUSE)
exception = partial(_rule, Trust.EXCEPTION)
victim = partial(_rule, Trust.VICTIM)
at_exit = partial(_rule, Trust.EXIT)
mention = partial(_rule, Trust.MENTION)
