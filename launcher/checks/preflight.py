"""One preflight from beginning to end: ask every node, try the ranks, judge, record.

Never raises for what it finds, nor for what it cannot find out: then the verdict is unknown, and
training starts.

The verdict of a preflight: every node's findings, and who is unfit. Pure.
"""

from __future__ import annotations

import json
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
from submitrain.launcher.checks.finding import Finding, Level, fail, ok, unknown, worst
from submitrain.launcher.checks.node_facts import NodeFacts, Unknown
from submitrain.launcher.checks.node_judge import INTRINSIC, Expected, judge_node, software
from submitrain.launcher.checks.node_query import Asked, ask_here, ask_nodes
from submitrain.launcher.checks.rank_trial import Trials
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.preflight_results import in_words
from submitrain.run_folder import RunDir, write_json_atomically

VERSION = 1
FIRST_HAND = frozenset({"ranks.meet"})
"""Checks in which one node's failure leaves the others unknown: they waited for it."""


@dataclass(frozen=True)
class Verdict:
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

    @property
    def level(self) -> Level:
        """The gravest of all findings."""
        return worst(one for found in self.findings.values() for one in found)

    def level_of(self, node: str) -> Level:
        """The gravest finding about a node."""
        return worst(self.findings[node])

    def in_words(self) -> str:
        """One sentence."""
        return in_words(self.as_json())

    def in_short(self) -> dict[str, Any]:
        """For the line at an attempt's start, small at any number of nodes."""
        counts = Counter(self.level_of(node) for node in self.findings)
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
            "level": str(self.level),
            "findings": {
                node: [one.as_json() for one in found] for node, found in self.findings.items()
            },
        }


def unfit_nodes(findings: Mapping[str, tuple[Finding, ...]]) -> dict[str, str]:
    """Nodes with a failure that others do not share, or that is the node's own in any case.

    What fails on every node is the site's or the user's: no other node would be better.
    """
    looked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for found in findings.values():
        looked.update(
            {one.id for one in found if one.level is not Level.UNKNOWN or one.id in FIRST_HAND}
        )
        failed.update({one.id for one in found if one.level is Level.FAIL})
    unfit: dict[str, str] = {}
    for node, found in findings.items():
        for one in found:
            alone = one.id in INTRINSIC or failed[one.id] < looked[one.id]
            if one.level is Level.FAIL and alone:
                unfit.setdefault(node, f"{one.id}: {one.evidence}")
    return unfit


def judge(asked: Asked, expected: Expected) -> dict[str, tuple[Finding, ...]]:
    """Findings of the node tier."""
    versions = software(asked.facts, expected.recorded)
    found: dict[str, tuple[Finding, ...]] = {
        node: (_python(facts), *judge_node(facts, expected), versions[node])
        for node, facts in asked.facts.items()
    }
    for node, why in asked.silent.items():
        remedy = "the run goes on without it; look at slurmd and the network there"
        found[node] = (fail("node.answers", f"it runs no tasks: {why}", remedy),)
    for node, why in asked.broken.items():
        remedy = "environment and run folder have to be there on every node, under the same path"
        found[node] = (fail("node.python", f"our Python does not run there: {why}", remedy),)
    for node, why in asked.unasked.items():
        found[node] = (unknown("node.answers", f"it could not be asked: {why}"),)
    return dict(sorted(found.items()))


def _python(facts: NodeFacts) -> Finding:
    version = "" if isinstance(facts.software, Unknown) else f" {facts.software.python}"
    return ok("node.python", f"Python{version} runs our code")


log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Preflight:
    """The preflight of one allocation."""

    run_dir: RunDir
    config: RunConfig
    allocation: Allocation
    interrupted: Callable[[], bool]
    """Asked often and by several threads: whether the job was told to end."""

    def run(self, attempt: int, nodes: Sequence[str]) -> Verdict:
        """Look at ``nodes`` for an attempt that was claimed; the record is in its folder."""
        began, at = time.monotonic(), time.time()
        folder = self.run_dir.attempt_dir(attempt) / "preflight"
        try:
            folder.mkdir(exist_ok=True)
            asked = self._ask(nodes, folder)
            findings = judge(asked, self._expected(nodes))
            if self.config.preflight == "full" and not self.interrupted():
                findings = self._with_ranks(findings, attempt, folder)
            silent = dict(asked.silent)
        except OSError as error:  # the run folder fails: what follows will meet the same
            words = f"it could not be carried out: {error}"
            findings, silent = {node: (unknown("node.answers", words),) for node in nodes}, {}
        took_s = time.monotonic() - began
        verdict = Verdict(self.config.preflight, findings, silent, at, took_s)
        self._record(verdict, attempt, folder)
        return verdict

    def _ask(self, nodes: Sequence[str], folder: Path) -> Asked:
        if not self.allocation.has_queue:
            return ask_here(folder=folder)
        return ask_nodes(
            nodes, job_id=self.allocation.job_id, folder=folder, interrupted=self.interrupted
        )

    def _expected(self, nodes: Sequence[str]) -> Expected:
        slurm = self.config.slurm
        return Expected(
            asker=nodes[0] if nodes else "",
            world_size=max(1, len(nodes)) * slurm.ntasks_per_node
            if self.allocation.has_queue
            else self.allocation.spawner.world_size,
            gpus_per_node=self.allocation.gpus_per_node,
            checkpoint_bytes=_newest_checkpoint_bytes(self.run_dir.checkpoints),
            recorded=_recorded_packages(self.run_dir.record),
        )

    def _with_ranks(
        self, findings: Mapping[str, tuple[Finding, ...]], attempt: int, folder: Path
    ) -> dict[str, tuple[Finding, ...]]:
        """The findings with those of the ranks, on the nodes that are fit so far."""
        unfit = unfit_nodes(findings)
        fit = [node for node in findings if node not in unfit]
        if not fit:
            return dict(findings)
        trials = Trials(
            spawner=self.allocation.spawner,
            attempt=attempt,
            folder=folder,
            tasks_per_node=self.config.slurm.ntasks_per_node,
            interrupted=self.interrupted,
        )
        found = trials.run(fit)
        return {node: (*old, *found.get(node, ())) for node, old in findings.items()}

    def _record(self, verdict: Verdict, attempt: int, folder: Path) -> None:
        with suppress(OSError):
            write_json_atomically(self.run_dir.preflight(attempt), verdict.as_json())
            for path in folder.glob("*.token"):
                path.unlink(missing_ok=True)
        say = log.warning if verdict.unfit else log.info
        say("preflight", attempt=attempt, verdict=verdict.in_words())


def now_and_then(ask: Callable[[], bool], every_s: float = 1.0) -> Callable[[], bool]:
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
