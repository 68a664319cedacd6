"""What one line means: benign lines and log levels first, then the rules. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from functools import cache

from monitor.diagnose.benign import is_benign, is_only_warning
from monitor.diagnose.index import RuleIndex
from monitor.diagnose.lines import without_prefix
from monitor.diagnose.model import FailureClass, Trust
from monitor.diagnose.patterns import RULES
from monitor.diagnose.patterns.process import EXCEPTION_LINE

Meaning = tuple[FailureClass, Trust]
_NCCL_WARNING = "nccl warn"
"""NCCL's own report of a broken network is about NCCL."""
_EXCEPTION = re.compile(EXCEPTION_LINE)


@cache
def rule_index() -> RuleIndex:
    """The index of all rules; built once per process."""
    return RuleIndex(RULES)


def meaning_of(line: str, positions: Iterable[int] | None = None) -> Meaning | None:
    """Class and trust of a line, None when it speaks of no failure.

    A specific class beats a plain Python exception; of several specific ones the most trusted
    holds, of equals the first in ``RULES``. ``positions`` limits the rules that are tried.
    """
    message, lowered = without_prefix(line), line.lower()
    chosen = RULES if positions is None else [RULES[position] for position in positions]
    found = [one for one in chosen if one.matches(message, lowered)]
    if _NCCL_WARNING in lowered:
        found = [one for one in found if one.kind is not FailureClass.NETWORK_ERROR]
    if not found or _EXCEPTION.search(message):
        return _strongest([(one.kind, one.trust) for one in found])
    if is_benign(line):
        return None
    if is_only_warning(line):
        return _strongest(
            [
                (one.kind, one.trust if one.any_level else Trust.MENTION)
                for one in found
                if one.any_level or one.trust >= Trust.CAUSE
            ]
        )
    return _strongest([(one.kind, one.trust) for one in found])


def _strongest(found: Sequence[Meaning]) -> Meaning | None:
    specific = [one for one in found if one[0] is not FailureClass.PYTHON_EXCEPTION]
    return max(specific or found, key=lambda one: one[1], default=None)
