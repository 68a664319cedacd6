"""Finds out which nodes of an attempt are gone: from srun's words, from silence, by asking.

Slurm itself notices a lost node late (SlurmdTimeout, 300 s on real sites). srun's words and the
ranks' silence raise a suspicion at once; the scheduler's view, or a step on that node alone,
settles it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.evidence import NodeSign, RankExit, RankFailure
from launcher.records import MANY_RANKS, RankRecords
from monitor.hostlist import expand_nodes

LAUNCH_CHECK_S = 15.0
"""Seconds without any sign of life of a node's ranks after which the node is asked for."""
SILENT_BEATS = 4
"""Heartbeats of all ranks of a node that must be missing before the node is asked for."""
_NODE_FAILURE = re.compile(r"Node failure on (?P<nodes>\S+)")
_LAUNCH_FAILURE = re.compile(
    r"(?:Task launch for \S+ failed on node |Unable to confirm allocation.* on node |"
    r"launch failed on )(?P<nodes>[^:\s]+):?\s*(?P<why>.*)"
)


class NodeInquiry(Protocol):
    """Answers whether nodes are gone; ``launcher.allocation`` is one."""

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        """Of the last attempt's nodes, those that the job has no more, and dead suspects."""


def lost_in_words(words: str) -> dict[str, str]:
    """Nodes that srun calls failed, with its line."""
    return {
        node: line.strip()
        for line in words.splitlines()
        if (match := _NODE_FAILURE.search(line))
        for node in expand_nodes(match["nodes"].rstrip(".,;"))
    }


def refused_in_words(words: str) -> dict[str, str]:
    """Nodes on which srun could not start tasks, with its reason."""
    return {
        node: (match["why"] or line).strip()
        for line in words.splitlines()
        if (match := _LAUNCH_FAILURE.search(line))
        for node in expand_nodes(match["nodes"])
    }


def silent_nodes(
    nodes: Sequence[str],
    *,
    exits: Sequence[RankExit],
    failures: Sequence[RankFailure],
    told: Collection[str] = (),
) -> tuple[str, ...]:
    """Nodes of which nobody heard how their ranks ended: srun reports the ends on living ones.

    ``told`` are hosts of ranks that said themselves that they finished or stopped.
    """
    heard = {*told, *(one.host for one in exits), *(failure.host for failure in failures)}
    return tuple(node for node in nodes if node not in heard)


@dataclass
class NodeWatch:
    """Looks after the nodes of one running attempt."""

    inquiry: NodeInquiry
    nodes: tuple[str, ...]
    records: RankRecords
    heartbeat_s: float
    words: Path
    lost: dict[str, str] = field(default_factory=dict)
    """Node to what shows that it is gone."""

    def __post_init__(self) -> None:
        now = time.monotonic()
        self._next_check = now + LAUNCH_CHECK_S
        self._heard: dict[int, tuple[float, float]] = {}
        self._began = now

    def look(self) -> bool:
        """Whether a node of this attempt turned out to be gone; cheap, may be called often."""
        now = time.monotonic()
        if now < self._next_check:
            return False
        self._next_check = now + LAUNCH_CHECK_S / 3
        missing = len(self.records.started) < self.records.world_size
        silent = self._silent(now)
        if not silent and not (missing and now - self._began > LAUNCH_CHECK_S):
            return False
        self._next_check = now + LAUNCH_CHECK_S
        self.lost |= self.inquiry.lost_nodes(silent)
        return bool(self.lost)

    def _silent(self, now: float) -> tuple[str, ...]:
        """Nodes whose ranks all ceased to beat, while ranks of other nodes go on."""
        patience_s = max(LAUNCH_CHECK_S, SILENT_BEATS * self.heartbeat_s)
        patience_s += self.records.world_size / MANY_RANKS  # their files are read in turns
        beating: set[str] = set()
        known: set[str] = set()
        for rank, beat in self.records.heartbeats.items():
            before = self._heard.get(rank)
            if before is None or before[0] != beat.t:
                self._heard[rank] = before = (beat.t, now)
            host = self.records.started.get(rank, "")
            known.add(host)
            if now - before[1] < patience_s:
                beating.add(host)
        if not beating:  # then it is the file system, or all hang: not one node's fault
            return ()
        return tuple(node for node in self.nodes if node in known - beating)

    def conclude(
        self, exits: Sequence[RankExit], *, ended_well: bool
    ) -> tuple[tuple[NodeSign, ...], tuple[NodeSign, ...]]:
        """After the attempt: nodes that are gone, and living ones where ranks did not start."""
        if ended_well:
            return (), ()
        words = self._read()
        refused = refused_in_words(words)
        records = self.records
        hosts = {records.started.get(rank, "") for rank in records.finished | records.stopped}
        silent = silent_nodes(self.nodes, exits=exits, failures=records.failures, told=hosts)
        named = {node: why for node, why in lost_in_words(words).items() if node in self.nodes}
        suspects = {*silent, *refused} - {*named, *self.lost}
        self.lost |= named | dict(self.inquiry.lost_nodes(sorted(suspects)))
        accused = {node: why for node, why in refused.items() if node not in self.lost}
        return _signs(self.lost), _signs(accused)

    def _read(self) -> str:
        try:
            return self.words.read_text(errors="replace")
        except OSError:
            return ""


def _signs(found: Mapping[str, str]) -> tuple[NodeSign, ...]:
    return tuple(NodeSign(node, why) for node, why in found.items())
