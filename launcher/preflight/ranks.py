"""What the ranks of a trial saw, and which node it speaks against. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from launcher.assess.finding import Finding, fail, ok, unknown, warn

SLOW = {"cpu": (1.5, 2.0), "cuda": (1.15, 1.5)}
"""From which multiple of its peers' time a multiplication is worth a warning, and a failure."""
_FRESH = {"meet": "did not reach rank 0", "join": "did not connect to all ranks"}


@dataclass(frozen=True)
class RankSeen:
    """What one rank wrote (``train.trial.Seen``), or that it wrote nothing."""

    rank: int
    host: str
    stage: str = ""
    """Where it was last; ``done`` is the end, empty before the beginning."""
    meet_s: float | None = None
    join_s: float | None = None
    wrong: tuple[int, ...] = ()
    reduce_bytes: int = 0
    reduce_s: float | None = None
    matmul_s: float | None = None
    device: str = ""
    error: str = ""
    victim: bool = False

    @classmethod
    def parse(cls, value: Mapping[str, Any]) -> RankSeen:
        """Read a rank's file; what a later version adds is left out."""
        known = {one.name for one in fields(cls)}
        found = {name: given for name, given in value.items() if name in known}
        return cls(**{**found, "wrong": tuple(value.get("wrong") or ())})


@dataclass(frozen=True)
class Pair:
    """Two nodes that tried it alone; ``why``: empty where it worked, None where it was not run."""

    nodes: tuple[str, str]
    why: str | None


@dataclass(frozen=True)
class Tier:
    """What a trial says of the nodes."""

    findings: Mapping[str, list[Finding]]
    isolate: bool
    """It failed, and nobody's own word tells why: pairs have to."""


def judge_ranks(seen: Sequence[RankSeen]) -> Tier:
    """Findings of every node from what its ranks saw."""
    hosts = list(dict.fromkeys(one.host for one in seen))
    culprits = {one.host: one for one in seen if one.error and not one.victim}
    over = all(one.stage == "done" for one in seen)
    wrong = {one.host for one in seen if one.wrong}
    findings: dict[str, list[Finding]] = {host: [] for host in hosts}
    for host in hosts:
        own = [one for one in seen if one.host == host]
        findings[host] += [_meeting(own, culprits.get(host), over=over), _sums(own, seen, wrong)]
    for host, found in judge_compute(seen).items():
        findings[host].append(found)
    only_some = wrong and len(wrong) < len(hosts)
    isolate = not culprits and ((not over) or bool(wrong and not only_some))
    return Tier(findings, isolate and len(hosts) > 1)


def _meeting(own: Sequence[RankSeen], culprit: RankSeen | None, *, over: bool) -> Finding:
    check = "ranks.meet"
    if culprit is not None:
        told = f"rank {culprit.rank} {_doing(culprit.stage)}: {culprit.error}"
        return fail(check, told, "look at the rank's log; it says the same without the others")
    if over:
        slowest = max((one.meet_s or 0.0) + (one.join_s or 0.0) for one in own)
        return ok(check, f"all ranks met in {slowest:.1f} s")
    stuck = next((one for one in own if one.stage != "done"), own[0])
    return unknown(check, f"the trial ended early; rank {stuck.rank} {_doing(stuck.stage)}")


def _doing(stage: str) -> str:
    words = {
        "": "never began",
        "start": "had just begun",
        "multiply": "failed before it met anybody",
        "reduce": "was in an all-reduce",
        "time": "was in an all-reduce",
        "done": "was through",
    }
    return words.get(stage) or _FRESH.get(stage, f"was at {stage!r}")


def _sums(own: Sequence[RankSeen], seen: Sequence[RankSeen], wrong: Iterable[str]) -> Finding:
    check = "ranks.reduce"
    bad = [one for one in own if one.wrong]
    if bad:
        told = f"rank {bad[0].rank}: a sum of {bad[0].wrong[0]} numbers came out wrong"
        hosts = {one.host for one in seen}
        if len(set(wrong)) < len(hosts):
            return fail(check, told, "report the node: its network or memory changes data")
        return unknown(check, f"{told}, as on all other nodes")
    times = [one.reduce_s for one in own if one.reduce_s]
    if not times:
        return unknown(check, "no sum was made")
    rate = f"; {_rate(own[0], len(seen)):.2f} GB/s" if len(seen) > 1 else ""
    return ok(check, f"sums are exact{rate}")


def _rate(one: RankSeen, ranks: int) -> float:
    """Bus bandwidth of an all-reduce: 2 (n - 1) / n x bytes / time (github.com/NVIDIA/nccl-tests,
    doc/PERFORMANCE.md)."""
    return 2 * (ranks - 1) / ranks * one.reduce_bytes / (one.reduce_s or 1.0) / 1e9


def judge_compute(seen: Sequence[RankSeen]) -> dict[str, Finding]:
    """Every node's slowest rank against the ranks of the other nodes."""
    check, found = "ranks.compute", {}
    for host in dict.fromkeys(one.host for one in seen):
        own = [one for one in seen if one.host == host and one.matmul_s]
        peers = [one.matmul_s for one in seen if one.host != host and one.matmul_s]
        if not own:
            found[host] = unknown(check, "no rank of it was timed")
            continue
        slowest = max(own, key=lambda one: one.matmul_s or 0.0)
        took = slowest.matmul_s or 0.0
        told = f"rank {slowest.rank}: a matrix product in {took * 1e3:.2f} ms"
        if not peers:
            found[host] = ok(check, f"{told}; no other node to compare with")
            continue
        usual = statistics.median(peers)
        ratio, (some, much) = took / usual, SLOW.get(slowest.device, SLOW["cpu"])
        words = f"{told}, {usual * 1e3:.2f} ms elsewhere"
        remedy = "look at its clock rate, temperature and power cap; report the node"
        if ratio >= much:
            found[host] = fail(check, f"{words}: {ratio:.1f} times as long", remedy)
        elif ratio >= some:
            found[host] = warn(check, f"{words}: {ratio:.1f} times as long", remedy)
        else:
            found[host] = ok(check, words)
    return found


def ring(nodes: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Pairs of neighbours in rounds in which nobody is twice: every node is in two pairs."""
    if len(nodes) < 2:
        return []
    if len(nodes) == 2:
        return [[(nodes[0], nodes[1])]]
    pairs = [(nodes[i], nodes[(i + 1) % len(nodes)]) for i in range(len(nodes))]
    odd_one = [pairs.pop()] if len(nodes) % 2 else []
    return [one for one in (pairs[::2], pairs[1::2], odd_one) if one]


def judge_pairs(pairs: Sequence[Pair]) -> dict[str, Finding]:
    """Who is bad: each of its pairs failed, and a partner works with somebody else.

    Where no partner works with anybody, both sides are unknown: that is the network's fault, or two
    bad neighbours'.
    """
    check, found = "ranks.pairs", {}
    works = {node for pair in pairs if pair.why == "" for node in pair.nodes}
    for node in dict.fromkeys(node for pair in pairs for node in pair.nodes):
        own = [pair for pair in pairs if node in pair.nodes and pair.why is not None]
        partners = [other for pair in own for other in pair.nodes if other != node]
        named = " and ".join(partners)
        if node in works:
            found[node] = ok(check, f"works with {named}")
        elif own and any(partner in works for partner in partners):
            told = f"does not work with {named}: {own[0].why}"
            found[node] = fail(check, told, "look at its network; report the node")
        elif own:
            found[node] = unknown(check, f"it or {named} does not work: {own[0].why}")
        else:
            found[node] = unknown(check, "no pair was tried in time")
    return found
