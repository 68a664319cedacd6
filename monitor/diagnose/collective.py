"""Who held up a collective: the rank that completed least, or said nothing. Pure.

Source of the wording: torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from monitor.diagnose.model import FailureClass, Finding

_COMPLETED = re.compile(r"last completed (?:nccl )?work:? (-?\d+)", re.IGNORECASE)
_STUCK_AT = re.compile(r"SeqNum=(\d+)")
_OPERATION = re.compile(r"OpType=(\w+)")
MAX_LISTED = 8


@dataclass(frozen=True)
class Straggler:
    """What the watchdogs' numbers say; ``rank`` None when they do not single one out."""

    rank: int | None
    explanation: str
    operation: str = ""


def find_straggler(findings: Sequence[Finding]) -> Straggler | None:
    """The rank with the lowest sequence number, else those that said nothing at all.

    None while fewer than two ranks have spoken: there is nothing to compare.
    """
    hung = [one for one in findings if one.kind is FailureClass.NCCL_TIMEOUT]
    progress: dict[int, int] = {}
    operation = ""
    for one in hung:
        number = _progress(one.text)
        if match := _OPERATION.search(one.text):
            operation = operation or match[1]
        if one.rank is not None and number is not None:
            progress[one.rank] = min(number, progress.get(one.rank, number))
    if len(progress) < 2:
        return None
    low, high = min(progress.values()), max(progress.values())
    behind = sorted(rank for rank, number in progress.items() if number == low)
    if low < high:
        text = f"rank {_listed(behind)} stopped at collective {low}, others reached {high}"
        return Straggler(behind[0] if len(behind) == 1 else None, text, operation)
    silent = sorted(set(range(max(progress) + 1)) - progress.keys())
    if silent:
        text = f"all that spoke stopped at collective {low}; rank {_listed(silent)} said nothing"
        return Straggler(silent[0] if len(silent) == 1 else None, text, operation)
    return Straggler(None, f"every rank that spoke stopped at collective {low}", operation)


def _progress(text: str) -> int | None:
    if match := _COMPLETED.search(text):
        return int(match[1])
    if match := _STUCK_AT.search(text):
        return int(match[1]) - 1
    return None


def _listed(ranks: Sequence[int]) -> str:
    text = ", ".join(str(rank) for rank in ranks[:MAX_LISTED])
    return text + (f" and {len(ranks) - MAX_LISTED} more" if len(ranks) > MAX_LISTED else "")
