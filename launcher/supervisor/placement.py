"""On which nodes of a job the next attempt runs, and when it is better to leave them. Pure.

Which nodes failed this run before, and which of them are out for a while. Pure.

A strike is one failure that is blamed on a node. Strikes are facts of attempts.jsonl, so they
outlive requeues, new jobs and the supervisor itself; they expire (``resilience.strike_expiry``).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from submitrain.attempts import Attempt, Cause, Decision
from submitrain.config.job import SlurmConfig
from submitrain.events import mapping
from submitrain.launcher.supervisor.evidence import (
    AttemptEvidence,
    NodeSign,
    RankExit,
    refused_exits,
)


@dataclass(frozen=True)
class Strike:
    """One failure that a node is blamed for; ``t`` in UTC seconds."""

    node: str
    t: float
    attempt: int
    why: str
    alone: bool = False
    """It is enough by itself: a preflight found the node unfit."""


def blame(evidence: AttemptEvidence, decision: Decision) -> tuple[NodeSign, ...]:
    """The nodes to blame for how an attempt ended, and why; most ends are nobody's fault.

    One node at the most for a rank's death: what follows on other nodes is its consequence.
    """
    if decision.cause is Cause.HUNG:
        host = evidence.hang.host if evidence.hang is not None else ""
        return (NodeSign(host, "a rank hung"),) if host else ()
    if decision.cause is Cause.NODE_LOST:
        return evidence.lost_nodes
    if decision.cause is Cause.LAUNCH_FAILED:
        return evidence.accused_nodes
    if decision.cause is Cause.CONTAINER_ERROR:
        hosts = dict.fromkeys(one.host for one in refused_exits(evidence) if one.host)
        return tuple(NodeSign(host, "the ranks' container did not start there") for host in hosts)
    if decision.cause is not Cause.RANK_DIED:
        return ()
    own = next((one for one in evidence.failures if not one.victim), None)
    if own is not None:
        return (NodeSign(own.host, f"rank {own.rank}: {own.exception}"),) if own.host else ()
    first = next((one for one in evidence.exits if _unexplained(one, evidence)), None)
    if first is None or not first.host:
        return ()
    return (NodeSign(first.host, f"rank {first.rank} ended with code {first.code}"),)


def _unexplained(one: RankExit, evidence: AttemptEvidence) -> bool:
    told = any(failure.rank == one.rank for failure in evidence.failures)
    return one.died and not one.ours and not told


def strikes_in(attempts: Iterable[Attempt]) -> list[Strike]:
    """All strikes that the ends of attempts tell of."""
    return [strike for one in attempts for strike in _strikes_of(one)]


def _strikes_of(one: Attempt) -> list[Strike]:
    t, attempt = one.ended_at or 0.0, one.number
    found = [
        Strike(str(line["node"]), t, attempt, str(line.get("why", "")), line.get("alone") is True)
        for line in one.end.get("strikes") or ()
        if isinstance(line, Mapping) and line.get("node")
    ]
    host = _hung_host(one) if one.cause is Cause.HUNG else ""
    if host and all(strike.node != host for strike in found):
        found.append(Strike(host, t, attempt, "a rank hung"))
    return found


def _hung_host(one: Attempt) -> str:
    hangs = (mapping(one.end.get("hang")), mapping(one.evidence.get("hang")))
    return next((str(hang["host"]) for hang in hangs if hang.get("host")), "")


def struck_out(
    strikes: Iterable[Strike], *, now: float, limit: int | None, expiry_s: float
) -> dict[str, list[Strike]]:
    """Nodes with at least ``limit`` strikes of the last ``expiry_s`` seconds, the worst first.

    ``limit`` None: no node is out for failures of the run, however many. ``now`` in UTC seconds.
    """
    by_node: dict[str, list[Strike]] = {}
    for strike in strikes:
        if now - strike.t < expiry_s:
            by_node.setdefault(strike.node, []).append(strike)
    out = {
        node: found
        for node, found in by_node.items()
        if any(one.alone for one in found) or (limit is not None and len(found) >= limit)
    }
    return dict(sorted(out.items(), key=lambda item: (-len(item[1]), -item[1][-1].t)))


@dataclass(frozen=True)
class NodeRule:
    """How many nodes an attempt has, and needs.

    ``wanted`` is what the job started with, spares aside; ``floor`` the fewest on which an elastic
    run goes on; ``job_min`` the fewest that the job asks the scheduler for, spares included.
    """

    wanted: int
    floor: int
    job_min: int
    elastic: bool

    @classmethod
    def of(cls, slurm: SlurmConfig, granted: int, *, elastic: bool) -> NodeRule:
        """The rule for a job that got ``granted`` nodes.

        Of a fixed number half is enough to go on: fewer would take too long to be worth it.
        """
        least, most = slurm.nodes.min, slurm.nodes.max
        wanted = min(most, max(least, granted - slurm.spare_nodes), granted)
        floor = -(-most // 2) if slurm.nodes.fixed else least
        return cls(wanted, min(floor, wanted), slurm.job_nodes.min, elastic)

    def enough(self, count: int) -> bool:
        """Whether an attempt may run on so many nodes."""
        return count >= (self.floor if self.elastic else self.wanted)


@dataclass(frozen=True)
class Standing:
    """What is known of nodes at one moment, by name; ``struck`` the worst first."""

    living: tuple[str, ...]
    """Nodes of the job, as the scheduler lists them."""
    current: tuple[str, ...] = ()
    """Where the last attempt ran."""
    lost: tuple[str, ...] = ()
    struck: tuple[str, ...] = ()


@dataclass(frozen=True)
class Outlook:
    """What follows for the nodes.

    ``nodes`` are those of the next attempt in this job; empty when the job shall go back into the
    queue. ``exclude`` are those that it shall not get when it does. ``kept`` are nodes that should
    be avoided and cannot be.
    """

    nodes: tuple[str, ...]
    exclude: tuple[str, ...] = ()
    kept: tuple[str, ...] = ()


def choose(standing: Standing, rule: NodeRule, *, forgive: Collection[str] = ()) -> tuple[str, ...]:
    """Up to ``rule.wanted`` usable nodes in the scheduler's order: those in use, then spares.

    ``forgive`` names struck nodes that are taken all the same, last.
    """
    bad = set(standing.struck) - set(forgive)
    usable = [node for node in standing.living if node not in {*standing.lost, *bad}]
    order = sorted(usable, key=lambda node: (node in forgive, node not in standing.current))
    chosen = set(order[: rule.wanted])
    return tuple(node for node in standing.living if node in chosen)


def bounded_exclusion(
    candidates: Sequence[str], pool: Collection[str] | None, needed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Which of ``candidates`` (the worst first) a job can do without, and which it must keep.

    ``pool`` are the nodes that could run it; at least ``needed`` of them stay. When nobody knows
    the pool (None), nothing is excluded: a job that fits nowhere would wait for ever.
    """
    if pool is None:
        return (), tuple(dict.fromkeys(candidates))
    room = len(set(pool)) - needed
    excluded: list[str] = []
    kept: list[str] = []
    for node in dict.fromkeys(candidates):
        if node not in pool:
            excluded.append(node)  # down as it is: costs nothing, and it may come back
        elif room > 0:
            excluded.append(node)
            room -= 1
        else:
            kept.append(node)
    return tuple(excluded), tuple(kept)


def outlook(standing: Standing, rule: NodeRule, pool: Collection[str] | None) -> Outlook:
    """Go on here, on fewer nodes or on spares, or back into the queue without the bad ones.

    A struck node that cannot be excluded without leaving too few for the job is used again: some
    progress is better than none.
    """
    exclude, kept = bounded_exclusion([*standing.lost, *standing.struck], pool, rule.job_min)
    nodes = choose(standing, rule)
    if rule.enough(len(nodes)):
        return Outlook(nodes, exclude)
    stay = choose(standing, rule, forgive=standing.struck)
    here = set(standing.living)
    excludable = (set(exclude) & here) - set(standing.lost)
    if rule.enough(len(stay)) and not excludable:
        return Outlook(stay, exclude, tuple(node for node in standing.struck if node in stay))
    return Outlook((), exclude, kept)


def in_words(found: Outlook, standing: Standing, rule: NodeRule) -> str:
    """What follows, for the explanation of an attempt; empty when nothing changes."""
    parts = []
    gone = [node for node in standing.current if node not in found.nodes]
    new = [node for node in found.nodes if node not in standing.current]
    if not found.nodes:
        left = len(choose(standing, rule))
        parts.append(f"{left} of {rule.wanted} nodes are left: back into the queue")
        if found.exclude:
            parts.append(f"without {', '.join(found.exclude)}")
    elif new and len(found.nodes) == rule.wanted:
        verb = "takes" if len(new) == 1 else "take"
        parts.append(f"{', '.join(new)} {verb} the place of {', '.join(gone) or 'lost nodes'}")
    elif gone:
        parts.append(f"it goes on with {len(found.nodes)} of {rule.wanted} nodes")
        parts.append(f"without {', '.join(gone)}")
    if found.kept:
        names = ", ".join(found.kept)
        parts.append(f"{names} would be avoided, but then too few nodes were left for the job")
    return ", ".join(parts)
