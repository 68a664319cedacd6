"""How long a request may wait: asks ``sbatch --test-only`` and the queue.

Two estimates, and the wait is given as the range between them: the start that ``--test-only``
names (by the limits of running jobs, and of waiting ones that the scheduler has planned already;
it writes to standard error and uses up a job id: measured on 22.05), and the node-hours that run
and wait in the partition, worked off by all of its nodes. Jobs that end early shorten both.

Backfill: Slurm starts a job at once on nodes that are free until a maintenance or the start planned
for a waiting job (sched/backfill), which ``--test-only`` does not foresee: measured on 22.05, it
names the time after all that is planned, and the job started within one cycle. A run is resumed by
itself after its time limit, so that a shorter one costs restarts and not the work.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

from submitrain.config.types import format_duration, parse_duration_s
from submitrain.launcher.checks.objections import JobRequest, usable
from submitrain.launcher.checks.schedulability import (
    Outcome,
    Schedulability,
    judge,
    partitions_of,
)
from submitrain.launcher.submit.submit import job_environment
from submitrain.slurm.client import Ask, ask, queue_lines, read_cluster, sbatch_test_only
from submitrain.slurm.cluster import ClusterFacts
from submitrain.slurm.parse import epoch_s

LEAST_S = 600
"""Shorter slices are not suggested: starting and saving would be most of them."""
MARGIN_S = 60
"""The job is submitted a little later than it is judged."""
GAIN_S = 300
"""A wait that is worth a change."""
_NOT_AHEAD = ("Dependency", "JobHeld", "BeginTime", "PartitionTimeLimit", "PartitionNodeLimit")
"""Beginnings of reasons for which a job takes nothing from others for now."""


def expect(
    request: JobRequest, script: str, *, facts: ClusterFacts | None = None, run: Ask = ask
) -> Schedulability:
    """Judge a request, with how long it may wait; unknown where Slurm does not answer.

    ``facts`` spares asking for what the cluster has.
    """
    facts = facts or read_cluster(run=run)
    if facts is None:
        why = "Slurm does not say what nodes and limits it has"
        return Schedulability(Outcome.UNKNOWN, (why,))
    found = judge(request, facts)
    known = facts.partitions
    names = [
        name for name in partitions_of(request, facts) if name in known and known[name].is_open
    ]
    if found.outcome is Outcome.IMPOSSIBLE or not names:
        return found
    start_s, refusal = _test_only(script, run)
    ahead_s, waiting, planned = _ahead(request, facts, names, run)
    if refusal:
        why = f"`sbatch --test-only` says: {refusal}"
        return replace(found, outcome=Outcome.WAITS, why=(*found.why, why))
    if start_s is None:
        return found
    if start_s == 0 and not waiting:
        return replace(found, outcome=Outcome.STARTS_NOW, why=(), suggestions=())
    least_s, most_s = sorted([start_s, start_s if ahead_s is None else ahead_s])
    source = f"sbatch --test-only and the node-hours ahead ({waiting} jobs wait)"
    waits = replace(found, outcome=Outcome.WAITS, wait_s=(least_s, most_s), source=source)
    if found.outcome is not Outcome.STARTS_NOW or start_s < GAIN_S:
        return waits
    return backfilled(waits, request, gap_s(request, facts, names, planned, now=time.time()))


def _test_only(script: str, run: Ask) -> tuple[float | None, str]:
    """Seconds until running jobs make room, or Slurm's refusal."""
    # Without the variables of a surrounding job, as the submission itself.
    inherited = set(os.environ) - set(job_environment(os.environ, ""))
    return parse_test_only(sbatch_test_only(script, unset=inherited, run=run), now=time.time())


def parse_test_only(said: str, *, now: float) -> tuple[float | None, str]:
    """Seconds from ``now`` until the start that sbatch names, or why it refuses; else neither."""
    if refused := re.search(r"allocation failure: (.+)", said):
        return None, refused[1].strip()
    started = re.search(r"Job \d+ to start at (\S+)", said)
    when = epoch_s(started[1]) if started else None
    return (None, "") if when is None else (max(0.0, round(when - now)), "")


def _ahead(
    request: JobRequest, facts: ClusterFacts, partitions: list[str], run: Ask
) -> tuple[float | None, int, list[float]]:
    """Seconds until the partitions have worked off what runs and waits; how many jobs wait, and
    when those are planned to start.
    """
    lines = queue_lines(partitions, run=run)
    if lines is None:
        return None, 0, []
    node_s, jobs, planned = work_ahead(lines)
    pool = max(len(usable(request, facts, name)) for name in partitions)
    return (node_s / pool if pool else None), jobs, planned


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


def gap_s(
    request: JobRequest,
    facts: ClusterFacts,
    partitions: Sequence[str],
    planned: Iterable[float],
    *,
    now: float,
) -> int | None:
    """Seconds, in whole minutes, until the next job or reservation begins; None where none does.

    ``planned`` are the starts that Slurm plans for waiting jobs, in seconds since the epoch.
    """
    nodes = frozenset[str]().union(*(facts.partitions[name].nodes for name in partitions))
    reserved = (
        one.starts_at
        for one in (facts.reservations or {}).values()
        if one.name not in request.reservations and one.nodes & nodes
    )
    starts = [start for start in (*reserved, *planned) if start is not None and start > now]
    return max(0, int(min(starts) - now - MARGIN_S) // 60 * 60) if starts else None


def backfilled(found: Schedulability, request: JobRequest, gap: int | None) -> Schedulability:
    """What a gap of so many seconds means for a request that has room now and would wait."""
    if gap is None or found.wait_s is None or gap < min(LEAST_S, request.time_s):
        return found
    if request.time_s <= gap:
        source = f"what comes next begins in {format_duration(gap)}: backfill may start it before"
        return replace(found, wait_s=(0.0, found.wait_s[1]), source=source)
    shorter = (
        f"slurm.time={format_duration(gap)} fits before what comes next: backfill may start it at "
        "once, and the run is resumed in slices of that time by itself"
    )
    return replace(found, suggestions=(shorter, *found.suggestions))
