"""Whether Slurm can ever run a request, and whether it would start at once. Pure.

Slurm accepts requests that no limit allows and leaves them pending for ever (EnforcePartLimits=NO,
limits of accounts and QOS without DenyOnLimit: slurm.conf(5), resource_limits.html). Each of those
is an objection here, with the limit and who sets it. What is not known is no objection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from launcher.verdict.facts import ClusterFacts
from launcher.verdict.limits import accounting_objections, waived
from launcher.verdict.nodes import (
    free,
    node_objections,
    partition_objections,
    reservation_objections,
    usable,
)
from launcher.verdict.request import Request


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
    the scheduler's business (``launcher.verdict.queue``).
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
