"""Why Slurm lets a job wait, in plain words, and what to do about it. Pure."""

from __future__ import annotations

import re

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


def explained(reason: str) -> tuple[str, str]:
    """A reason as squeue prints it in plain words ("" where it needs none), and what to do."""
    word = _word(reason)
    if word.startswith(("QOS", "Assoc")):
        return "a limit of its account or QOS is used up", "wait for jobs of it to end"
    return _REASONS.get(word, ("", "look at squeue --start and at the partition"))


def in_words(reason: str) -> str:
    """``Priority: other jobs go first``; what is in plain words already stays as it is."""
    plain, _ = explained(reason)
    if not plain or plain in reason:
        return reason
    more = reason.partition(",")[2].strip(" ()")
    return f"{_word(reason)}: {plain}" + (f" ({more})" if more else "")


def _word(reason: str) -> str:
    return re.split("[,:]", reason)[0].strip("() ")
