"""One preflight from beginning to end: ask every node, try the ranks, judge, record.

Never raises for what it finds, nor for what it cannot find out: then the verdict is unknown, and
training starts.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from launcher.allocation import Allocation
from launcher.assess.finding import Finding, unknown
from launcher.preflight.ask import Asked, ask_here, ask_nodes
from launcher.preflight.judge import Expected
from launcher.preflight.trial import Trials
from launcher.preflight.verdict import Verdict, judge, unfit_nodes
from train.config import RunConfig
from train.rundir import RunDir, write_json_atomically

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
