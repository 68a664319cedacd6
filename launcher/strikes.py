"""Which nodes failed this run before, and which of them are out for a while. Pure.

A strike is one failure that is blamed on a node. Strikes are facts of attempts.jsonl, so they
outlive requeues, new jobs and the supervisor itself; they expire (``resilience.strike_expiry``).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.evidence import AttemptEvidence, NodeSign, RankExit, refused_exits
from launcher.outcome import Cause, Decision
from train.events import Kind

HUNG = "hung"
"""Cause of attempts whose record names the hanging rank's host itself, under ``hang``."""


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
    if decision.cause == HUNG:
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


def strikes_in(events: Iterable[Mapping[str, Any]]) -> list[Strike]:
    """All strikes that attempts.jsonl tells of; of an attempt's ends the last one holds."""
    ends = {
        event["attempt"]: event
        for event in events
        if event.get("kind") == Kind.ATTEMPT_END and isinstance(event.get("attempt"), int)
    }
    return [strike for event in ends.values() for strike in _strikes_of(event)]


def _strikes_of(event: Mapping[str, Any]) -> list[Strike]:
    t, attempt = float(event.get("t") or 0.0), int(event["attempt"])
    found = [
        Strike(str(one["node"]), t, attempt, str(one.get("why", "")), one.get("alone") is True)
        for one in event.get("strikes") or ()
        if isinstance(one, Mapping) and one.get("node")
    ]
    host = _hung_host(event) if event.get("cause") == HUNG else ""
    if host and all(one.node != host for one in found):
        found.append(Strike(host, t, attempt, "a rank hung"))
    return found


def _hung_host(event: Mapping[str, Any]) -> str:
    evidence = event.get("evidence")
    inside = evidence.get("hang") if isinstance(evidence, Mapping) else None
    for hang in (event.get("hang"), inside):
        if isinstance(hang, Mapping) and hang.get("host"):
            return str(hang["host"])
    return ""


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
