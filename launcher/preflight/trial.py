"""Runs trials of all ranks, and of pairs of nodes where all together fail. An edge module."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import structlog

from launcher.assess.finding import Finding
from launcher.preflight.ranks import Pair, RankSeen, judge_pairs, judge_ranks, ring
from launcher.spawn import LocalSpawner, RankGroup, Spawner
from launcher.srun import SrunSpawner

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
class Trials:
    """Where trials run, and until when."""

    spawner: Spawner
    attempt: int
    folder: Path
    """In the run folder; every trial has a folder of its own in it."""
    tasks_per_node: int
    interrupted: Callable[[], bool]

    def run(self, nodes: Sequence[str]) -> dict[str, list[Finding]]:
        """Findings of every node: from all ranks together, and where that fails, from pairs."""
        tier = judge_ranks(self._all(nodes))
        findings = {host: list(found) for host, found in tier.findings.items()}
        if tier.isolate and not self.interrupted() and isinstance(self.spawner, SrunSpawner):
            log.warning("preflight_pairs", nodes=list(nodes))
            for host, found in judge_pairs(self._pairs(nodes)).items():
                findings.setdefault(host, []).append(found)
        return findings

    def _all(self, nodes: Sequence[str]) -> list[RankSeen]:
        return self._trial("all", nodes, self.tasks_per_node, TRIAL_S)

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

    def _trial(self, name: str, nodes: Sequence[str], tasks: int, timeout_s: int) -> list[RankSeen]:
        """Start the ranks, wait for them, and read what they wrote."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        spawner = self._spawner(name, tuple(nodes), tasks, timeout_s)
        group = spawner.start(self.attempt)
        until = time.monotonic() + timeout_s + LATE_S
        try:
            while not group.poll() and time.monotonic() < until and not self.interrupted():
                time.sleep(POLL_S)
        finally:
            group.kill()
        died = {one.rank: one.code for one in group.exits() if one.died and not one.ours}
        return [
            _read(folder, rank, spawner.host_of(rank), died.get(rank))
            for rank in range(spawner.world_size)
        ]

    def _spawner(self, name: str, nodes: tuple[str, ...], tasks: int, timeout_s: int) -> _Placed:
        folder = self.folder / name
        module = ("-m", "launcher.preflight.rank", str(folder), str(timeout_s))
        spawner = self.spawner
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
            there = replace(spawner, shape=shape, node_names=nodes, command=(python, *module))
            return _Placed(there, nodes, tasks)
        assert isinstance(spawner, LocalSpawner)
        command = (sys.executable, *module)
        here = replace(spawner, logs=folder, command=command)
        return _Placed(here, spawner.nodes, spawner.world_size)


@dataclass(frozen=True)
class _Placed:
    """A spawner, and on which node each of its ranks is: tasks fill node after node."""

    spawner: Spawner
    nodes: tuple[str, ...]
    tasks: int

    @property
    def world_size(self) -> int:
        return self.spawner.world_size

    def start(self, attempt: int) -> RankGroup:
        return self.spawner.start(attempt)

    def host_of(self, rank: int) -> str:
        return self.nodes[rank // self.tasks]


def _read(folder: Path, rank: int, host: str, code: int | None) -> RankSeen:
    """What a rank wrote; ``code`` if it died by itself, which it may not have been able to say."""
    try:
        seen = RankSeen.parse(json.loads((folder / f"rank{rank:05d}.json").read_text()))
    except (OSError, ValueError, TypeError):
        seen = RankSeen(rank, host)
    if code is None or seen.error:
        return seen
    how = f"killed by signal {-code}" if code < 0 else f"exit code {code}"
    return replace(seen, error=f"{how}: {_last_words(folder, rank)}")


def _last_words(folder: Path, rank: int) -> str:
    """The last line that a rank wrote to its standard error."""
    try:
        lines = (folder / f"rank{rank:05d}.err").read_text(errors="replace").strip().splitlines()
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "it ended without a word"


def trouble(seen: Sequence[RankSeen]) -> str:
    """Why a trial of two failed; empty when it did not. Pure."""
    for one in seen:
        if one.wrong:
            return f"a sum of {one.wrong[0]} numbers came out wrong"
    bad = [one for one in seen if one.stage != "done"]
    if not bad:
        return ""
    told = next((one for one in bad if one.error and not one.victim), bad[0])
    return told.error or f"a rank on {told.host} did not get beyond {told.stage or 'its start'!r}"
