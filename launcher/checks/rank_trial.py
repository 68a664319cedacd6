"""Preflight ``full``: all ranks meet, reduce and multiply; pairs of nodes where that fails."""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from submitrain.launcher.checks.finding import Finding, fail, ok, unknown, warn
from submitrain.launcher.supervisor.processes import LocalSpawner, Spawner
from submitrain.launcher.supervisor.srun import SrunSpawner
from submitrain.preflight_results import RankReport

SLOW = {"cpu": (1.5, 2.0), "cuda": (1.15, 1.5)}
"""From which multiple of its peers' time a multiplication is worth a warning, and a failure."""
_DOING = {
    "": "never began",
    "start": "had just begun",
    "multiply": "failed before it met anybody",
    "meet": "did not reach rank 0",
    "join": "did not connect to all ranks",
    "reduce": "was in an all-reduce",
    "time": "was in an all-reduce",
    "done": "was through",
}
"""What a rank did whose last stage this was."""


@dataclass(frozen=True)
class Pair:
    """Two nodes that tried it alone; ``why``: empty where it worked, None where it was not run."""

    nodes: tuple[str, str]
    why: str | None


def judge_ranks(reports: Sequence[RankReport]) -> tuple[dict[str, list[Finding]], bool]:
    """Findings of every node from what its ranks saw; and whether pairs of nodes have to tell.

    That is where the trial failed, and nobody's own word tells why.
    """
    hosts = list(dict.fromkeys(one.host for one in reports))
    culprits = {one.host: one for one in reports if one.error and not one.victim}
    complete = all(one.stage == "done" for one in reports)
    wrong = {one.host for one in reports if one.wrong}
    compute = judge_compute(reports)
    findings: dict[str, list[Finding]] = {}
    for host in hosts:
        own = [one for one in reports if one.host == host]
        meeting = _meeting(own, culprits.get(host), complete=complete)
        sums = _sums(own, len(reports), everywhere=len(wrong) == len(hosts))
        findings[host] = [meeting, sums, compute[host]]
    unexplained = not complete or 0 < len(wrong) == len(hosts)
    return findings, unexplained and not culprits and len(hosts) > 1


def _meeting(own: Sequence[RankReport], culprit: RankReport | None, *, complete: bool) -> Finding:
    id = "ranks.meet"
    if culprit is not None:
        told = f"rank {culprit.rank} {_DOING.get(culprit.stage)}: {culprit.error}"
        return fail(id, told, "look at the rank's log; it says the same without the others")
    if complete:
        slowest = max((one.meet_s or 0.0) + (one.join_s or 0.0) for one in own)
        return ok(id, f"all ranks met in {slowest:.1f} s")
    stuck = next((one for one in own if one.stage != "done"), own[0])
    return unknown(id, f"the trial ended early; rank {stuck.rank} {_DOING.get(stuck.stage)}")


def _sums(own: Sequence[RankReport], ranks: int, *, everywhere: bool) -> Finding:
    """Whether sums are exact, and how fast.

    Bus bandwidth of an all-reduce: 2 (n - 1) / n x bytes / time (github.com/NVIDIA/nccl-tests,
    doc/PERFORMANCE.md).
    """
    id, bad = "ranks.reduce", next((one for one in own if one.wrong), None)
    if bad is not None:
        told = f"rank {bad.rank}: a sum of {bad.wrong[0]} numbers came out wrong"
        if everywhere:
            return unknown(id, f"{told}, as on all other nodes")
        return fail(id, told, "report the node: its network or memory changes data")
    timed = next((one for one in own if one.reduce_s), None)
    if timed is None:
        return unknown(id, "no sum was made")
    rate = 2 * (ranks - 1) / ranks * timed.reduce_bytes / (timed.reduce_s or 1.0) / 1e9
    return ok(id, f"sums are exact; {rate:.2f} GB/s" if ranks > 1 else "sums are exact")


def judge_compute(reports: Sequence[RankReport]) -> dict[str, Finding]:
    """Every node's slowest rank against the ranks of the other nodes."""
    id, found = "ranks.compute", {}
    for host in dict.fromkeys(one.host for one in reports):
        own = [one for one in reports if one.host == host and one.matmul_s]
        peers = [one.matmul_s for one in reports if one.host != host and one.matmul_s]
        if not own:
            found[host] = unknown(id, "no rank of it was timed")
            continue
        slowest = max(own, key=lambda one: one.matmul_s or 0.0)
        took_s = slowest.matmul_s or 0.0
        told = f"rank {slowest.rank}: a matrix product in {took_s * 1e3:.2f} ms"
        if not peers:
            found[host] = ok(id, f"{told}; no other node to compare with")
            continue
        usual_s = statistics.median(peers)
        ratio, (some, much) = took_s / usual_s, SLOW.get(slowest.device, SLOW["cpu"])
        told += f", {usual_s * 1e3:.2f} ms elsewhere"
        remedy = "look at its clock rate, temperature and power cap; report the node"
        if ratio < some:
            found[host] = ok(id, told)
        else:
            slow = fail if ratio >= much else warn
            found[host] = slow(id, f"{told}: {ratio:.1f} times as long", remedy)
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


TRIAL_S = 120
"""Seconds that ranks give each other in every stage."""
PAIR_S = 45
LATE_S = 30.0
"""Seconds beyond that for starting, importing torch and leaving."""
PAIRS_S = 180.0
"""Seconds for all pairs together."""
AT_ONCE = 8
POLL_S = 0.1

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class RankTrials:
    """Where trials run, and until when."""

    spawner: Spawner
    attempt: int
    folder: Path
    """In the run folder; every trial has a folder of its own in it."""
    tasks_per_node: int
    interrupted: Callable[[], bool]

    def run(self, nodes: Sequence[str]) -> dict[str, list[Finding]]:
        """Findings of every node: from all ranks together, and where that fails, from pairs."""
        together = self._trial("all", nodes, self.tasks_per_node, TRIAL_S)
        findings, isolate = judge_ranks(together)
        if isolate and not self.interrupted() and isinstance(self.spawner, SrunSpawner):
            log.warning("preflight_pairs", nodes=list(nodes))
            for host, found in judge_pairs(self._pairs(nodes)).items():
                findings.setdefault(host, []).append(found)
        return findings

    def _pairs(self, nodes: Sequence[str]) -> list[Pair]:
        """Neighbours in a ring, disjoint ones at the same time, as long as there is time."""
        until, done = time.monotonic() + PAIRS_S, []

        def one(pair: tuple[str, str]) -> Pair:
            if time.monotonic() > until or self.interrupted():
                return Pair(pair, None)
            return Pair(pair, trouble(self._trial("-".join(pair), pair, 1, PAIR_S)))

        with ThreadPoolExecutor(AT_ONCE) as pool:
            for pairs in ring(nodes):
                done += list(pool.map(one, pairs))
        return done

    def _trial(
        self, name: str, nodes: Sequence[str], tasks: int, timeout_s: int
    ) -> list[RankReport]:
        """Start the ranks, wait for them, and read what they wrote."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        spawner, placed = self._spawner(name, tuple(nodes), tasks, timeout_s)
        group = spawner.start(self.attempt)
        until = time.monotonic() + timeout_s + LATE_S
        try:
            while not group.poll() and time.monotonic() < until and not self.interrupted():
                time.sleep(POLL_S)
        finally:
            group.kill()
        died = {one.rank: one.code for one in group.exits() if one.died and not one.ours}
        return [_read(folder, rank, host, died.get(rank)) for rank, host in enumerate(placed)]

    def _spawner(
        self, name: str, nodes: tuple[str, ...], tasks: int, timeout_s: int
    ) -> tuple[Spawner, list[str]]:
        """What starts the trial, and the node of each of its ranks: tasks fill node after node."""
        folder, spawner = self.folder / name, self.spawner
        module = ("-m", "submitrain.launcher.checks.trial_task", str(folder), str(timeout_s))
        if isinstance(spawner, SrunSpawner):
            python = sys.executable if spawner.runtime is None else "python3"
            shape = replace(
                spawner.shape,
                num_nodes=len(nodes),
                tasks_per_node=tasks,
                nodelist=nodes,
                name=f"preflight-{name}",
                logs=folder,
            )
            there = replace(spawner, shape=shape, nodes=nodes, command=(python, *module))
            return there, [node for node in nodes for _ in range(tasks)]
        assert isinstance(spawner, LocalSpawner)
        here = replace(spawner, logs=folder, command=(sys.executable, *module))
        return here, [spawner.nodes[0]] * spawner.world_size


def _read(folder: Path, rank: int, host: str, code: int | None) -> RankReport:
    """What a rank wrote; ``code`` if it died by itself, which it may not have been able to say."""
    report = RankReport.read(folder, rank, host)
    if code is not None and not report.error:
        how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
        words = ""
        with suppress(OSError):
            words = (folder / f"rank{rank:05d}.err").read_text(errors="replace").strip()
        last = words.splitlines()[-1][:300] if words else "it ended without a word"
        report.error = f"{how}: {last}"
    return report


def trouble(reports: Sequence[RankReport]) -> str:
    """Why a trial of two failed; empty when it did not."""
    for one in reports:
        if one.wrong:
            return f"a sum of {one.wrong[0]} numbers came out wrong"
    bad = [one for one in reports if one.stage != "done"]
    if not bad:
        return ""
    told = next((one for one in bad if one.error and not one.victim), bad[0])
    return told.error or f"a rank on {told.host} did not get beyond {told.stage or 'its start'!r}"
