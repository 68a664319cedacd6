"""One preflight of an allocation: check every node, try the ranks, record what was found.

Never raises for what it finds, nor for what it cannot find out: then the result is unknown, and
training starts.
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import structlog

from submitrain.config import RunConfig
from submitrain.launcher.checks import node_software
from submitrain.launcher.checks.finding import Finding, Level, unknown, worst
from submitrain.launcher.checks.node_query import Answers, NoAnswer, ask_here, ask_nodes
from submitrain.launcher.checks.node_request import NodeAnswer, NodeRequest
from submitrain.launcher.checks.rank_trial import RankTrials
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.preflight_results import preflight_text
from submitrain.run_folder import RunDir, write_json_atomically

VERSION = 1
HARDWARE = frozenset({"node.answers", "gpu.count", "gpu.memory", "gpu.xid", "gpu.links"})
"""Checks that speak against a node even where they fail on all nodes.

A limit or a folder that is wrong everywhere is the site's or the user's: leaving nodes for it would
only send the job back into the queue, to meet the same again.
"""
FIRST_HAND = frozenset({"ranks.meet"})
"""Checks in which one node's failure leaves the others unknown: they waited for it."""
log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class PreflightResult:
    """What one preflight found."""

    mode: str
    findings: Mapping[str, tuple[Finding, ...]]
    """By node."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Nodes that do not run tasks, and how that shows: lost to this job."""
    began_at: float = 0.0
    took_s: float = 0.0

    @property
    def unfit(self) -> dict[str, str]:
        """Nodes that training shall do without, and why; silent ones are among them."""
        return unfit_nodes(self.findings)

    def in_short(self) -> dict[str, Any]:
        """For the line at an attempt's start, small at any number of nodes."""
        counts = Counter(worst(found) for found in self.findings.values())
        return {
            "mode": self.mode,
            "took_s": round(self.took_s, 3),
            "nodes": {str(level): counts[level] for level in Level if counts[level]},
            "unfit": self.unfit,
        }

    def as_json(self) -> dict[str, Any]:
        """The record: ``attempts/NNN/preflight.json``."""
        return {
            "v": VERSION,
            "began_at": round(self.began_at, 3),
            **self.in_short(),
            "level": str(worst(one for found in self.findings.values() for one in found)),
            "findings": {
                node: [one.as_json() for one in found] for node, found in self.findings.items()
            },
        }


def unfit_nodes(findings: Mapping[str, Sequence[Finding]]) -> dict[str, str]:
    """Nodes with a failure that others do not share, or that is the node's own in any case.

    What fails on every node is the site's or the user's: no other node would be better.
    """
    judged: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for found in findings.values():
        judged.update(
            {one.id for one in found if one.level is not Level.UNKNOWN or one.id in FIRST_HAND}
        )
        failed.update({one.id for one in found if one.level is Level.FAIL})
    unfit: dict[str, str] = {}
    for node, found in findings.items():
        for one in found:
            alone = one.id in HARDWARE or failed[one.id] < judged[one.id]
            if one.level is Level.FAIL and alone:
                unfit.setdefault(node, f"{one.id}: {one.evidence}")
    return unfit


def findings_of(
    answers: Answers, recorded: Mapping[str, str] | None = None
) -> dict[str, tuple[Finding, ...]]:
    """The findings about every node; ``recorded`` are the package versions of the launch."""
    answered = {node: one for node, one in answers.items() if isinstance(one, NodeAnswer)}
    versions = {node: one.versions for node, one in answered.items()}
    compared = node_software.compare_versions(versions, recorded)
    found: dict[str, tuple[Finding, ...]]
    found = {node: (one.finding(),) for node, one in answers.items() if isinstance(one, NoAnswer)}
    for node, answer in answered.items():
        own = answer.findings
        said = any(one.id == node_software.ID for one in own)  # why it has no versions
        found[node] = own if said else (*own, compared[node])
    return dict(sorted(found.items()))


@dataclass(frozen=True)
class Preflight:
    """The preflight of one allocation."""

    run_dir: RunDir
    config: RunConfig
    allocation: Allocation
    interrupted: Callable[[], bool]
    """Asked often and by several threads: whether the job was told to end."""

    def run(self, attempt: int, nodes: Sequence[str]) -> PreflightResult:
        """Check ``nodes`` for an attempt that was claimed; the record is in its folder."""
        began, at = time.monotonic(), time.time()
        folder = self.run_dir.attempt_dir(attempt) / "preflight"
        silent: dict[str, str] = {}
        try:
            folder.mkdir(exist_ok=True)
            answers = self._ask(nodes, folder)
            for node, answer in answers.items():
                if isinstance(answer, NoAnswer) and answer.silent:
                    silent[node] = answer.silent
            findings = findings_of(answers, _recorded_packages(self.run_dir.record))
            if self.config.preflight == "full" and not self.interrupted():
                findings = self._with_ranks(findings, attempt, folder)
        except OSError as error:  # the run folder fails: what follows will meet the same
            said = f"it could not be carried out: {error}"
            findings, silent = {node: (unknown("node.answers", said),) for node in nodes}, {}
        took_s = time.monotonic() - began
        result = PreflightResult(self.config.preflight, findings, silent, at, took_s)
        with suppress(OSError):
            write_json_atomically(self.run_dir.preflight(attempt), result.as_json())
            for path in folder.glob("*.token"):
                path.unlink(missing_ok=True)
        say = log.warning if result.unfit else log.info
        say("preflight", attempt=attempt, result=preflight_text(result.as_json()))
        return result

    def _ask(self, nodes: Sequence[str], folder: Path) -> Answers:
        allocation, queued = self.allocation, self.allocation.has_queue
        first = os.environ.get("SLURMD_NODENAME") or next(iter(nodes), "")
        ranks = max(1, len(nodes)) * self.config.slurm.ntasks_per_node
        request = NodeRequest(
            node="",
            asker=first if queued else socket.gethostname(),
            folder=str(folder),
            token="",
            world_size=ranks if queued else allocation.spawner.world_size,
            gpus_per_node=allocation.gpus_per_node,
            checkpoint_bytes=_newest_checkpoint_bytes(self.run_dir.checkpoints),
            versions=queued and len(nodes) > 1,
        )
        if not queued:
            return ask_here(request)
        return ask_nodes(nodes, request, job_id=allocation.job_id, interrupted=self.interrupted)

    def _with_ranks(
        self, findings: Mapping[str, tuple[Finding, ...]], attempt: int, folder: Path
    ) -> dict[str, tuple[Finding, ...]]:
        """The findings with those of the ranks, on the nodes that are fit so far."""
        unfit = unfit_nodes(findings)
        fit = [node for node in findings if node not in unfit]
        if not fit:
            return dict(findings)
        trials = RankTrials(
            spawner=self.allocation.spawner,
            attempt=attempt,
            folder=folder,
            tasks_per_node=self.config.slurm.ntasks_per_node,
            interrupted=self.interrupted,
        )
        found = trials.run(fit)
        return {node: (*old, *found.get(node, ())) for node, old in findings.items()}


def throttled(ask: Callable[[], bool], every_s: float = 1.0) -> Callable[[], bool]:
    """The same question, put at most once in ``every_s`` seconds: it may cost a look at a disk."""
    lock, state = threading.Lock(), [False, 0.0]

    def answer() -> bool:
        with lock:
            if time.monotonic() - state[1] > every_s:
                state[0], state[1] = ask(), time.monotonic()
            return bool(state[0])

    return answer


def _recorded_packages(record: Path) -> Mapping[str, str]:
    try:
        value: Any = json.loads(record.read_text())
    except (OSError, ValueError):
        return {}
    packages = value.get("packages") if isinstance(value, dict) else None
    return packages if isinstance(packages, dict) else {}


def _newest_checkpoint_bytes(folder: Path) -> int | None:
    """Size of the newest checkpoint, where there is one already."""
    try:
        newest = max(path for path in folder.glob("step-*") if (path / "manifest.json").exists())
        return sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    except (OSError, ValueError):
        return None
