"""Which shorter time would fit before what comes next: a maintenance, or the first waiting job.

A run asks for its next slice by itself at its time limit, so that a shorter one costs a restart
and not the work. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from launcher.verdict.facts import ClusterFacts
from launcher.verdict.request import Request
from train.config.types import format_duration

LEAST_S = 600
"""Shorter slices are not suggested: starting and saving would be most of them."""
MARGIN_S = 60
"""The job is submitted a little later than it is judged."""
GAIN_S = 300
"""A wait that is worth a change."""


def fitting_s(
    request: Request,
    facts: ClusterFacts,
    partitions: Sequence[str],
    planned: Iterable[float],
    *,
    now: float,
) -> int | None:
    """Seconds, in whole minutes, until the next job or reservation begins; None for no such time.

    ``planned`` are the starts that Slurm plans for waiting jobs, in seconds since the epoch.
    """
    nodes = frozenset[str]().union(*(facts.partitions[name].nodes for name in partitions))
    reserved = (
        one.starts_at
        for one in (facts.reservations or {}).values()
        if one.name not in request.reservations and one.nodes & nodes
    )
    starts = [start for start in (*reserved, *planned) if start is not None and start > now]
    if not starts:
        return None
    gap_s = int(min(starts) - now - MARGIN_S) // 60 * 60
    return gap_s if LEAST_S <= gap_s < request.time_s else None


def suggestion(time_s: int) -> str:
    """What to change, and what it costs."""
    return (
        f"slurm.time={format_duration(time_s)} starts now, before what comes next; the run goes on "
        "in slices of that time by itself"
    )
