"""Whether Slurm can ever run a request, and whether it would start at once. Pure.

Slurm accepts requests that no limit allows and leaves them pending for ever (EnforcePartLimits=NO,
limits of accounts and QOS without DenyOnLimit: slurm.conf(5), resource_limits.html). Each of those
is an objection here, with the limit and who sets it. What is not known is no objection.

What fits before the next thing comes: a maintenance, or the start planned for a waiting job.

Slurm starts such a job at once on nodes that are free until then (sched/backfill), which ``sbatch
--test-only`` does not foresee: measured on 22.05, it names the time after all that is planned, and
the job started within one cycle. A run goes on by itself after its time limit, so that a shorter
one costs restarts and not the work. Pure.

What a launch makes of a verdict: go on, ask in a terminal, or refuse; prints nothing itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from enum import StrEnum
from typing import Any

from submitrain.config.types import format_duration, parse_duration_s
from submitrain.errors import ClusterError, UserError
from submitrain.launcher.checks.limits import Request, accounting_objections, waived
from submitrain.launcher.checks.partitions import (
    free,
    node_objections,
    partition_objections,
    reservation_objections,
    usable,
)
from submitrain.slurm.cluster import ClusterFacts


class Outcome(StrEnum):
    """What would become of a submission."""

    IMPOSSIBLE = "impossible"
    WAITS = "waits"
    STARTS_NOW = "starts now"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Verdict:
    """The outcome with its reasons; ``wait_s`` is the least and the most expected, if known."""

    outcome: Outcome
    why: tuple[str, ...] = ()
    wait_s: tuple[float, float] | None = None
    source: str = ""
    """Where the expectation comes from."""
    suggestions: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "outcome": str(self.outcome)}


def judge(request: Request, facts: ClusterFacts) -> Verdict:
    """Judge a request against what the cluster has and allows.

    Waiting is told from starting by free nodes only: what else waits, and with what priority, is
    the scheduler's business (``launcher.checks.queue``).
    """
    wanted = partitions_of(request, facts)
    if not wanted and facts.rewrites_requests:
        return Verdict(Outcome.UNKNOWN, ("a plugin of this site chooses the partition",))
    if not wanted:
        return Verdict(Outcome.IMPOSSIBLE, (_no_partition(facts),))
    objections = {name: tuple(_objections(request, name, facts)) for name in wanted}
    fitting = [name for name, problems in objections.items() if not problems]
    if not fitting:
        why = tuple(dict.fromkeys(text for problems in objections.values() for text in problems))
        return Verdict(Outcome.IMPOSSIBLE, why, suggestions=tuple(_elsewhere(request, facts)))
    closed = [name for name in fitting if not facts.partitions[name].is_open]
    if len(closed) == len(fitting):
        text = f"partition {', '.join(closed)} is down: no job of it starts until it is opened"
        return Verdict(Outcome.WAITS, (text,), suggestions=tuple(_elsewhere(request, facts)))
    fitting = [name for name in fitting if name not in closed]
    room = max(len(free(request, facts, name)) for name in fitting)
    if room >= request.nodes:
        return Verdict(Outcome.STARTS_NOW)
    why = tuple(_why_waiting(request, facts, fitting, room))
    return Verdict(Outcome.WAITS, why, suggestions=tuple(_sooner(request, room)))


def partitions_of(request: Request, facts: ClusterFacts) -> tuple[str, ...]:
    """Its partitions, else those of its reservations, else the default one."""
    known = facts.reservations or {}
    reserved = [known[name].partition for name in request.reservations if name in known]
    chosen = request.partitions or tuple(filter(None, reserved))
    return chosen or tuple(filter(None, [facts.default_partition]))


def _no_partition(facts: ClusterFacts) -> str:
    known = ", ".join(sorted(facts.partitions))
    return f"slurm.partition: this cluster has no default partition; name one of {known}"


def _objections(request: Request, partition: str, facts: ClusterFacts) -> Iterator[str]:
    """Why this request can never run in this partition."""
    found = facts.partitions.get(partition)
    if found is None:
        known = ", ".join(sorted(facts.partitions))
        yield f"slurm.partition: there is no partition {partition}; there are {known}"
        return
    yield from partition_objections(request, found, waived(request, found, facts))
    yield from node_objections(request, found, facts)
    yield from reservation_objections(request, facts)
    yield from accounting_objections(request, found, facts)


def _why_waiting(
    request: Request, facts: ClusterFacts, partitions: list[str], room: int
) -> Iterator[str]:
    up = max(len(usable(request, facts, name)) for name in partitions)
    if up < request.nodes:
        yield (
            f"{request.nodes} nodes are asked for and {up} of the right kind are up: it waits "
            "until nodes come back (`sinfo --list-reasons` says why they are away)"
        )
    else:
        yield f"{request.nodes} nodes are asked for and {room} have room now"


def _elsewhere(request: Request, facts: ClusterFacts) -> Iterator[str]:
    """Other partitions in which the same request could run."""
    tried = set(partitions_of(request, facts))
    for name in sorted(set(facts.partitions) - tried):
        if facts.partitions[name].is_open and not any(_objections(request, name, facts)):
            yield f"slurm.partition={name} can run it"


def _sooner(request: Request, room: int) -> Iterator[str]:
    if 0 < room < request.nodes:
        yield (
            f"slurm.nodes={room}-{request.max_nodes} starts with what is free, at the same global "
            "batch size"
        )


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


def permit(
    verdict: Verdict | None,
    *,
    force: bool = False,
    max_wait_s: float | None = None,
    confirm: Callable[[str], bool] | None = None,
    way_out: str = "--force submits it all the same",
) -> None:
    """Return if the job may be submitted; ``confirm`` asks a person who sits at a terminal.

    ``way_out`` says what to do about a job that can never run.

    Raises:
        ClusterError: it can never run, or it waits longer than wanted.
    """
    if verdict is None:
        return
    if verdict.outcome is Outcome.IMPOSSIBLE and force:
        return
    problem = _problem(verdict, max_wait_s, way_out)
    if problem is None or (confirm is not None and confirm(problem)):
        return
    raise ClusterError(problem)


def _problem(verdict: Verdict, max_wait_s: float | None, way_out: str) -> str | None:
    if verdict.outcome is Outcome.IMPOSSIBLE:
        lines = [*verdict.why, *(f"instead: {one}" for one in verdict.suggestions)]
        return "\n".join([*lines, f"Slurm would never start this job; {way_out}"])
    if max_wait_s is None or verdict.outcome is Outcome.STARTS_NOW:
        return None
    if verdict.wait_s is None:
        why = "; ".join(verdict.why) or "Slurm gives no estimate"
        return f"--max-wait: nobody can say how long it would wait ({why}); leave the option out"
    if verdict.wait_s[0] <= max_wait_s:
        return None
    least, limit = format_duration(round(verdict.wait_s[0])), format_duration(round(max_wait_s))
    return (
        f"--max-wait: at most {limit} was asked for, and it would wait {least} or longer (by "
        f"{verdict.source})"
    )


def max_wait_s(text: str | int | None) -> int | None:
    """Seconds of ``--max-wait``; None for no limit.

    Raises:
        UserError: it is no duration.
    """
    try:
        return None if text is None else parse_duration_s(text)
    except ValueError as error:
        raise UserError(f"--max-wait: {error}") from error


def verdict_lines(verdict: Verdict) -> list[str]:
    """The verdict for a terminal: its outcome with the wait, reasons, what would be better."""
    first = str(verdict.outcome)
    if verdict.wait_s is not None:
        least, most = verdict.wait_s
        upto = "" if most == least else f" to {format_duration(round(most))}"
        first = f"waits about {format_duration(round(least))}{upto}, by {verdict.source}"
    return [first, *verdict.why, *(f"instead: {one}" for one in verdict.suggestions)]
