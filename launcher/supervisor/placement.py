"""Which nodes an attempt runs on, which are avoided for their failures, and when to leave. Pure.

A strike is one failure that is blamed on a node. Strikes are facts of attempts.jsonl, so they
outlive requeues, new jobs and the supervisor itself; they expire (``resilience.strike_expiry``).
A node with enough of them (``resilience.max_strikes``) is quarantined.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from submitrain.attempts import Action, Attempt, Cause
from submitrain.config.job import SlurmConfig
from submitrain.events import mapping
from submitrain.launcher.supervisor.evidence import AttemptEvidence


@dataclass(frozen=True)
class Strike:
    """One failure that a node is blamed for; ``t`` in UTC seconds."""

    node: str
    t: float
    attempt: int
    why: str
    alone: bool = False
    """It is enough by itself: a preflight found the node unfit."""


def blame(evidence: AttemptEvidence, cause: Cause) -> dict[str, str]:
    """The nodes to blame for how an attempt ended, and why; most ends are nobody's fault.

    One node at the most for a rank's death: what follows on other nodes is its consequence.
    """
    if cause is Cause.NODE_LOST:
        return dict(evidence.lost_nodes)
    if cause is Cause.LAUNCH_FAILED:
        return dict(evidence.accused_nodes)
    if cause is Cause.CONTAINER_ERROR:
        text = "the ranks' container did not start there"
        return {one.host: text for one in evidence.refused_exits if one.host}
    host = why = ""
    if cause is Cause.HUNG and evidence.hang is not None:
        host, why = evidence.hang.host, "a rank hung"
    elif cause is Cause.RANK_DIED and (own := evidence.own_failure) is not None:
        host, why = own.host, f"rank {own.rank}: {own.exception}"
    elif cause is Cause.RANK_DIED and (first := evidence.unexplained_exit) is not None:
        host, why = first.host, f"rank {first.rank} ended with code {first.code}"
    return {host: why} if host else {}


def strikes_in(attempts: Iterable[Attempt]) -> list[Strike]:
    """All strikes that the ends of attempts tell of."""
    found: list[Strike] = []
    for one in attempts:
        t, number = one.ended_at or 0.0, one.number
        told = [
            Strike(
                str(line["node"]), t, number, str(line.get("why", "")), line.get("alone") is True
            )
            for line in one.end.get("strikes") or ()
            if isinstance(line, Mapping) and line.get("node")
        ]
        found += told
        if one.cause is Cause.HUNG:  # its record names the hanging rank's host itself
            hangs = (mapping(one.end.get("hang")), mapping(one.evidence.get("hang")))
            host = next((str(hang["host"]) for hang in hangs if hang.get("host")), "")
            if host and all(strike.node != host for strike in told):
                found.append(Strike(host, t, number, "a rank hung"))
    return found


def quarantined_nodes(
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
class ExcludedNodes:
    """The nodes that a job wanted to be rid of when it last went back into the queue.

    The exclusion may come too late or be refused: without accounting, Slurm 22.05 takes no update
    of a job that shrank before it was requeued, until the job's own processes are gone.
    """

    nodes: tuple[str, ...] = ()
    restarts: int = 0
    """How often Slurm had restarted the job then."""

    @classmethod
    def last(cls, attempts: Sequence[Attempt], job_id: str) -> ExcludedNodes:
        """What the last attempt of this job excluded."""
        last = next((one for one in reversed(attempts) if one.job_id == job_id), Attempt(0))
        leaves = last.action is Action.REQUEUE
        nodes = tuple(map(str, last.end.get("nodes_excluded") or ())) if leaves else ()
        return cls(nodes, last.restarts if last.cause else 0)

    def among(self, granted: Collection[str]) -> tuple[str, ...]:
        """Those that the job has again."""
        return tuple(node for node in self.nodes if node in granted)

    def helps_again(self, exclude: Collection[str], granted: Collection[str], now: int) -> bool:
        """Whether to go back once more with ``exclude``; ``now`` is Slurm's count of restarts.

        Only at the first restart after the job left, so never twice for one failure, and only if
        the node can be excluded this time.
        """
        return now == self.restarts + 1 and bool(set(exclude) & set(self.among(granted)))


@dataclass(frozen=True)
class NodeRule:
    """How many nodes an attempt has, and needs."""

    wanted: int
    """What the job started with, spares aside."""
    floor: int
    """The fewest on which an elastic run continues."""
    job_min: int
    """The fewest that the job asks the scheduler for, spares included."""
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
class NodeState:
    """What is known of the nodes at one moment, by name."""

    rule: NodeRule
    living: tuple[str, ...]
    """Nodes of the job, as the scheduler lists them."""
    current: tuple[str, ...] = ()
    """Where the last attempt ran."""
    lost: tuple[str, ...] = ()
    quarantined: tuple[str, ...] = ()
    """To be avoided: for strikes, unfit by a preflight, or given back by Slurm; worst first."""
    pool: frozenset[str] | None = None
    """Nodes that could run the job, as far as they are up; None where nobody knows or asked."""
    strikes: Mapping[str, str] = field(default_factory=dict)
    """``has 2 strikes (why)`` by quarantined node."""


@dataclass(frozen=True)
class Placement:
    """What the state of the nodes allows."""

    nodes: tuple[str, ...]
    """Those of the next attempt in this job; empty when the job shall go back into the queue."""
    exclude: tuple[str, ...] = ()
    """Those that it shall not get when it does."""
    kept: tuple[str, ...] = ()
    """Nodes that should be avoided and cannot be."""


def choose(state: NodeState, *, forgive: Collection[str] = ()) -> tuple[str, ...]:
    """Up to ``rule.wanted`` usable nodes in the scheduler's order: those in use, then spares.

    ``forgive`` names quarantined nodes that are taken all the same, last.
    """
    bad = {*state.lost, *(set(state.quarantined) - set(forgive))}
    usable = [node for node in state.living if node not in bad]
    order = sorted(usable, key=lambda node: (node in forgive, node not in state.current))
    chosen = set(order[: state.rule.wanted])
    return tuple(node for node in state.living if node in chosen)


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


def place(state: NodeState) -> Placement:
    """Go on here, on fewer nodes or on spares, or back into the queue without the bad ones.

    A quarantined node that cannot be excluded without leaving too few for the job is used again:
    some progress is better than none.
    """
    bad = [*state.lost, *state.quarantined]
    exclude, kept = bounded_exclusion(bad, state.pool, state.rule.job_min)
    nodes = choose(state)
    if state.rule.enough(len(nodes)):
        return Placement(nodes, exclude)
    stay = choose(state, forgive=state.quarantined)
    excludable = (set(exclude) & set(state.living)) - set(state.lost)
    if state.rule.enough(len(stay)) and not excludable:
        return Placement(stay, exclude, tuple(n for n in state.quarantined if n in stay))
    return Placement((), exclude, kept)


def describe_placement(found: Placement, state: NodeState) -> str:
    """What follows, for the explanation of an attempt; empty when nothing changes."""
    parts, wanted = [], state.rule.wanted
    gone = [node for node in state.current if node not in found.nodes]
    new = [node for node in found.nodes if node not in state.current]
    if not found.nodes:
        parts.append(f"{len(choose(state))} of {wanted} nodes are left: back into the queue")
        if found.exclude:
            parts.append(f"without {', '.join(found.exclude)}")
    elif new and len(found.nodes) == wanted:
        verb = "takes" if len(new) == 1 else "take"
        parts.append(f"{', '.join(new)} {verb} the place of {', '.join(gone) or 'lost nodes'}")
    elif gone:
        parts.append(f"it continues with {len(found.nodes)} of {wanted} nodes")
        parts.append(f"without {', '.join(gone)}")
    if found.kept:
        names = ", ".join(found.kept)
        parts.append(f"{names} would be avoided, but then too few nodes were left for the job")
    return ", ".join(parts)
