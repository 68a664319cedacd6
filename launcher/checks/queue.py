"""How long a request may wait: asks ``sbatch --test-only`` and the queue. An edge to Slurm.

Two estimates, and the wait is given as the range between them: the start that ``--test-only``
names (by the limits of running jobs, and of waiting ones that the scheduler has planned already;
it writes to standard error and uses up a job id: measured on 22.05), and the node-hours that run
and wait in the partition, worked off by all of its nodes. Jobs that end early shorten both.
"""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import replace

from submitrain.config.types import parse_duration_s
from submitrain.launcher.checks.limits import Request
from submitrain.launcher.checks.partitions import usable
from submitrain.launcher.checks.schedulability import (
    GAIN_S,
    Outcome,
    Verdict,
    backfilled,
    gap_s,
    judge,
    partitions_of,
)
from submitrain.launcher.submit.submit import job_environment
from submitrain.slurm.client import Ask, ask, epoch_s
from submitrain.slurm.cluster import ASK_TIMEOUT_S, ClusterFacts, read_cluster

_START = re.compile(r"Job \d+ to start at (?P<when>\S+)")
_REFUSED = re.compile(r"allocation failure: (?P<why>.+)")


def expect(request: Request, script: str, *, run: Ask = ask) -> Verdict:
    """The verdict on a request, with how long it may wait; unknown where Slurm does not answer."""
    facts = read_cluster(run=run)
    if facts is None:
        return Verdict(Outcome.UNKNOWN, ("Slurm does not say what nodes and limits it has",))
    verdict = judge(request, facts)
    partitions = _open_partitions(request, facts)
    if verdict.outcome is Outcome.IMPOSSIBLE or not partitions:
        return verdict
    start_s, refusal = _test_only(script, run)
    ahead_s, waiting, planned = _ahead(request, facts, partitions, run)
    if refusal:
        why = (*verdict.why, f"`sbatch --test-only` says: {refusal}")
        return replace(verdict, outcome=Outcome.WAITS, why=why)
    if start_s is None:
        return verdict
    if start_s == 0 and not waiting:
        return replace(verdict, outcome=Outcome.STARTS_NOW, why=(), suggestions=())
    least_s, most_s = sorted([start_s, start_s if ahead_s is None else ahead_s])
    source = f"sbatch --test-only and the node-hours ahead ({waiting} jobs wait)"
    found = replace(verdict, outcome=Outcome.WAITS, wait_s=(least_s, most_s), source=source)
    if verdict.outcome is not Outcome.STARTS_NOW or start_s < GAIN_S:
        return found
    return backfilled(found, request, gap_s(request, facts, partitions, planned, now=time.time()))


def _test_only(script: str, run: Ask) -> tuple[float | None, str]:
    """Seconds until running jobs make room, or Slurm's refusal."""
    with tempfile.NamedTemporaryFile("w", prefix="submitrain-", suffix=".sh") as file:
        file.write(script)
        file.flush()
        # Without the variables of a surrounding job, as the submission itself.
        inherited = set(os.environ) - set(job_environment(os.environ, ""))
        clean = ["env", *(f"--unset={name}" for name in sorted(inherited))]
        answer = run([*clean, "sbatch", "--test-only", file.name], timeout_s=ASK_TIMEOUT_S)
    return parse_test_only(answer.error, now=time.time())


def parse_test_only(said: str, *, now: float) -> tuple[float | None, str]:
    """Seconds from ``now`` until the start that sbatch names, or why it refuses; else neither."""
    if refused := _REFUSED.search(said):
        return None, refused["why"].strip()
    started = _START.search(said)
    when = epoch_s(started["when"]) if started else None
    return (None, "") if when is None else (max(0.0, round(when - now)), "")


def _open_partitions(request: Request, facts: ClusterFacts) -> list[str]:
    names = partitions_of(request, facts)
    return [name for name in names if name in facts.partitions and facts.partitions[name].is_open]


def _ahead(
    request: Request, facts: ClusterFacts, partitions: list[str], run: Ask
) -> tuple[float | None, int, list[float]]:
    """Seconds until the partitions have worked off what runs and waits; how many jobs wait, and
    when those are planned to start.
    """
    command = ["squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%D %T %l %L %S %r"]
    answer = run([*command, f"--partition={','.join(partitions)}"], timeout_s=ASK_TIMEOUT_S)
    if answer.code != 0:
        return None, 0, []
    node_s, jobs, planned = work_ahead(answer.out.splitlines())
    pool = max((len(usable(request, facts, name)) for name in partitions), default=0)
    return (node_s / pool if pool else None), jobs, planned


_NOT_AHEAD = ("Dependency", "JobHeld", "BeginTime", "PartitionTimeLimit", "PartitionNodeLimit")
"""Beginnings of reasons for which a job takes nothing from others for now."""


def work_ahead(lines: Iterable[str]) -> tuple[float, int, list[float]]:
    """Node-seconds of squeue's lines ``nodes state limit left start reason``; how many jobs wait,
    and the starts that are planned for them.
    """
    total, waiting, planned = 0.0, 0, []
    for line in lines:
        nodes, state, limit, left, start, reason = [*line.split(maxsplit=5), *[""] * 6][:6]
        pending = state == "PENDING"
        if not nodes.isdigit() or (pending and reason.startswith(_NOT_AHEAD)):
            continue
        waiting += pending
        if pending and (when := epoch_s(start)) is not None:
            planned.append(when)
        try:
            total += int(nodes) * parse_duration_s(limit if pending else left)
        except ValueError:
            continue  # UNLIMITED, INVALID: says nothing about when
    return total, waiting, planned
