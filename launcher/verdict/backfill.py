"""What fits before the next thing comes: a maintenance, or the start planned for a waiting job.

Slurm starts such a job at once on nodes that are free until then (sched/backfill), which ``sbatch
--test-only`` does not foresee: measured on 22.05, it names the time after all that is planned, and
the job started within one cycle. A run goes on by itself after its time limit, so that a shorter
one costs restarts and not the work. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from launcher.verdict.facts import ClusterFacts
from launcher.verdict.judge import Verdict
from launcher.verdict.request import Request
from train.config.types import format_duration

LEAST_S = 600
"""Shorter slices are not suggested: starting and saving would be most of them."""
MARGIN_S = 60
"""The job is submitted a little later than it is judged."""
GAIN_S = 300
"""A wait that is worth a change."""


def gap_s(
    request: Request,
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


def backfilled(verdict: Verdict, request: Request, gap: int | None) -> Verdict:
    """The verdict on a request that has room now and would wait for its turn."""
    if gap is None or verdict.wait_s is None or gap < min(LEAST_S, request.time_s):
        return verdict
    if request.time_s <= gap:
        source = f"what comes next begins in {format_duration(gap)}: backfill may start it before"
        return replace(verdict, wait_s=(0.0, verdict.wait_s[1]), source=source)
    shorter = (
        f"slurm.time={format_duration(gap)} fits before what comes next: backfill may start it at "
        "once, and the run goes on in slices of that time by itself"
    )
    return replace(verdict, suggestions=(shorter, *verdict.suggestions))
