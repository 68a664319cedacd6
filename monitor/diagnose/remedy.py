"""What to do about each class of failure, one sentence that says what happened, and the straggler.

The straggler of a hung collective is the rank that completed least, or said nothing; source of the
wording: torch/csrc/distributed/c10d/ProcessGroupNCCL.cpp. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from submitrain.monitor.diagnose.model import FailureClass, Finding, Remedy, Trust
from submitrain.monitor.diagnose.model import FailureClass as F
from submitrain.monitor.diagnose.patterns import ADVICE

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
        completed, stuck = _COMPLETED.search(one.text), _STUCK_AT.search(one.text)
        number = int(completed[1]) if completed else int(stuck[1]) - 1 if stuck else None
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


def _listed(ranks: Sequence[int]) -> str:
    text = ", ".join(str(rank) for rank in ranks[:MAX_LISTED])
    return text + (f" and {len(ranks) - MAX_LISTED} more" if len(ranks) > MAX_LISTED else "")


_PROBABLE_KILL = "a process was killed, probably because the host's memory did not suffice"
_PROBABLE_END = "the job was ended from outside: cancelled, preempted, or stopped by its launcher"
_HAS_PREFIX = re.compile(r"^\s*(?:\[?rank[^\]]*\]:?|\d+:)\s*", re.IGNORECASE)


def remedy_for(root: Finding) -> Remedy:
    """What to do, naming the node where it is to be excluded."""
    known = ADVICE[root.kind]
    exclude = known.step == "exclude_node" and root.node
    return Remedy(known.step, known.advice + (f" (--exclude={root.node})" if exclude else ""))


def summary_of(root: Finding, straggler: Straggler | None) -> str:
    """One sentence: what happened, on which rank and node, in which words."""
    what = ADVICE[root.kind].happened
    if root.trust is Trust.EXIT and root.kind is F.HOST_OOM:
        what = _PROBABLE_KILL
    if root.trust is Trust.EXIT and root.kind is F.PREEMPTED:
        what = _PROBABLE_END
    if straggler and straggler.operation:
        what = f"{what} ({straggler.operation})"
    where = f" on rank {root.rank}" if root.rank is not None else ""
    where += f" ({root.node})" if root.node and where else f" on {root.node}" if root.node else ""
    said = _HAS_PREFIX.sub("", root.text)
    return f"{what}{where}: {said}" if said else f"{what}{where}"
