"""Whether Slurm can ever run a request, whether it would start at once, and what a launch does.

Slurm accepts requests that no limit allows and leaves them pending for ever (EnforcePartLimits=NO,
limits of accounts and QOS without DenyOnLimit: slurm.conf(5), resource_limits.html). Each of those
is an objection here, with the limit and who sets it. What is not known is no objection.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from submitrain.config.types import format_duration, parse_duration_s
from submitrain.errors import ClusterError, UserError
from submitrain.launcher.checks.account_limits import accounting_objections, waived
from submitrain.launcher.checks.objections import (
    JobRequest,
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
class Schedulability:
    """The outcome with its reasons; ``wait_s`` is the least and the most expected, if known."""

    outcome: Outcome
    why: tuple[str, ...] = ()
    wait_s: tuple[float, float] | None = None
    source: str = ""
    """Where the expectation comes from."""
    suggestions: tuple[str, ...] = ()

    def lines(self) -> list[str]:
        """For a terminal: the outcome with the wait, reasons, what would be better."""
        first = str(self.outcome)
        if self.wait_s is not None:
            least, most = self.wait_s
            upto = "" if most == least else f" to {format_duration(round(most))}"
            first = f"waits about {format_duration(round(least))}{upto}, by {self.source}"
        return [first, *self.why, *(f"instead: {one}" for one in self.suggestions)]

    def as_json(self) -> dict[str, Any]:
        """Plain values for ``--json``."""
        return {**asdict(self), "outcome": str(self.outcome)}


def judge(request: JobRequest, facts: ClusterFacts) -> Schedulability:
    """Judge a request against what the cluster has and allows.

    Waiting is told from starting by free nodes only: what else waits, and with what priority, is
    the scheduler's business (``launcher.checks.queue``).
    """
    wanted = partitions_of(request, facts)
    if not wanted and facts.rewrites_requests:
        return Schedulability(Outcome.UNKNOWN, ("a plugin of this site chooses the partition",))
    if not wanted:
        known = ", ".join(sorted(facts.partitions))
        why = f"slurm.partition: this cluster has no default partition; name one of {known}"
        return Schedulability(Outcome.IMPOSSIBLE, (why,))
    objections = {name: tuple(_objections(request, name, facts)) for name in wanted}
    fitting = [name for name, problems in objections.items() if not problems]
    if not fitting:
        problems = dict.fromkeys(text for found in objections.values() for text in found)
        return Schedulability(
            Outcome.IMPOSSIBLE, tuple(problems), suggestions=_elsewhere(request, facts)
        )
    still_open = [name for name in fitting if facts.partitions[name].is_open]
    if not still_open:
        why = f"partition {', '.join(fitting)} is down: no job of it starts until it is opened"
        return Schedulability(Outcome.WAITS, (why,), suggestions=_elsewhere(request, facts))
    room = max(len(free(request, facts, name)) for name in still_open)
    if room >= request.nodes:
        return Schedulability(Outcome.STARTS_NOW)
    up = max(len(usable(request, facts, name)) for name in still_open)
    why = f"{request.nodes} nodes are asked for and {room} have room now"
    if up < request.nodes:
        why = (
            f"{request.nodes} nodes are asked for and {up} of the right kind are up: it waits "
            "until nodes come back (`sinfo --list-reasons` says why they are away)"
        )
    sooner = (
        f"slurm.nodes={room}-{request.max_nodes} starts with what is free, at the same global "
        "batch size"
    )
    return Schedulability(Outcome.WAITS, (why,), suggestions=(sooner,) if room else ())


def partitions_of(request: JobRequest, facts: ClusterFacts) -> tuple[str, ...]:
    """Its partitions, else those of its reservations, else the default one."""
    known = facts.reservations or {}
    reserved = [known[name].partition for name in request.reservations if name in known]
    chosen = request.partitions or tuple(filter(None, reserved))
    return chosen or tuple(filter(None, [facts.default_partition]))


def _elsewhere(request: JobRequest, facts: ClusterFacts) -> tuple[str, ...]:
    """Other partitions in which the same request could run."""
    return tuple(
        f"slurm.partition={name} can run it"
        for name in sorted(set(facts.partitions) - set(partitions_of(request, facts)))
        if facts.partitions[name].is_open and not any(_objections(request, name, facts))
    )


def _objections(request: JobRequest, partition: str, facts: ClusterFacts) -> Iterator[str]:
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


def permit(
    found: Schedulability | None,
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
    if found is None:
        return
    if found.outcome is Outcome.IMPOSSIBLE and force:
        return
    problem = _problem(found, max_wait_s, way_out)
    if problem is None or (confirm is not None and confirm(problem)):
        return
    raise ClusterError(problem)


def _problem(found: Schedulability, max_wait_s: float | None, way_out: str) -> str | None:
    if found.outcome is Outcome.IMPOSSIBLE:
        lines = [*found.why, *(f"instead: {one}" for one in found.suggestions)]
        return "\n".join([*lines, f"Slurm would never start this job; {way_out}"])
    if max_wait_s is None or found.outcome is Outcome.STARTS_NOW:
        return None
    if found.wait_s is None:
        why = "; ".join(found.why) or "Slurm gives no estimate"
        return f"--max-wait: nobody can say how long it would wait ({why}); leave the option out"
    if found.wait_s[0] <= max_wait_s:
        return None
    least, limit = format_duration(round(found.wait_s[0])), format_duration(round(max_wait_s))
    return (
        f"--max-wait: at most {limit} was asked for, and it would wait {least} or longer (by "
        f"{found.source})"
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
