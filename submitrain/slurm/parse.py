"""Why Slurm lets a job wait, in plain words, and what to do about it. Pure.

Slurm's short form of many host names. Pure; imports nothing of this project.
"""

from __future__ import annotations

import itertools
import re

_PART = re.compile(r"(?:[^,\s\[]|\[[^\]]*\])+")
_BRACKETS = re.compile(r"\[([^\]]*)\]")


def expand_nodes(text: str) -> list[str]:
    """Names of a host list: ``gpu[01-03,7],login`` is gpu01, gpu02, gpu03, gpu7, login.

    Several brackets in one name are expanded in the order of scontrol(1), "show hostnames": the
    last one varies fastest, then the first, the second and so on (measured with 22.05).
    """
    return [name for part in _PART.findall(text) for name in _expand_one(part)]


def _expand_one(part: str) -> list[str]:
    pieces = _BRACKETS.split(part)
    fixed, brackets = pieces[::2], [_numbers(one) for one in pieces[1::2]]
    if not brackets:
        return [part]
    names = []
    for chosen in itertools.product(*reversed(brackets[:-1]), brackets[-1]):
        numbers = [*reversed(chosen[:-1]), chosen[-1], ""]
        names.append("".join(map("".join, zip(fixed, numbers, strict=True))))
    return names


def _numbers(text: str) -> list[str]:
    return [number for item in text.split(",") for number in _range(item.strip())]


def _range(item: str) -> list[str]:
    first, dash, last = item.partition("-")
    if not dash or not (first.isdigit() and last.isdigit()):
        return [item]
    return [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]


_REASONS = {
    "Priority": ("other jobs go first", "ask for less, or wait; squeue --start shows an estimate"),
    "Resources": ("it is next, and nodes are not free yet", "wait, or ask for fewer nodes"),
    "Dependency": ("it waits for another job", "look at slurm.dependency"),
    "DependencyNeverSatisfied": (
        "the job it depends on failed, so it will never start",
        "cancel it and launch again without slurm.dependency",
    ),
    "BeginTime": ("its earliest start lies ahead", "look at slurm.begin; a requeue waits 2 min"),
    "PartitionTimeLimit": (
        "its time limit is longer than the partition allows, so it will never start",
        "lower slurm.time or choose another partition",
    ),
    "PartitionNodeLimit": (
        "it asks for more nodes than the partition has, so it will never start",
        "lower slurm.nodes or choose another partition",
    ),
    "JobHeldUser": ("its owner holds it", "scontrol release JOB"),
    "JobHeldAdmin": ("an administrator holds it", "ask the administrators"),
    "ReqNodeNotAvail": (
        "nodes it needs are down, drained or reserved",
        "look at sinfo -R, and at slurm.nodelist and slurm.exclude",
    ),
}
"""squeue(1), "JOB REASON CODES", in plain words, and what to do."""


def explain_reason(reason: str) -> tuple[str, str]:
    """A reason as squeue prints it in plain words ("" where it needs none), and what to do."""
    word = _word(reason)
    if word.startswith(("QOS", "Assoc")):
        return "a limit of its account or QOS is used up", "wait for jobs of it to end"
    return _REASONS.get(word, ("", "look at squeue --start and at the partition"))


def reason_text(reason: str) -> str:
    """``Priority: other jobs go first``; what is in plain words already stays as it is."""
    plain, _ = explain_reason(reason)
    if not plain or plain in reason:
        return reason
    more = reason.partition(",")[2].strip(" ()")
    return f"{_word(reason)}: {plain}" + (f" ({more})" if more else "")


def _word(reason: str) -> str:
    return re.split("[,:]", reason)[0].strip("() ")
