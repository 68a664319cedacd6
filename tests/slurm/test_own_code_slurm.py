"""Training functions of one's own on a real Slurm: a killed rank, then a preemption, in one run."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind, read_events
from submitrain.launcher import Run, launch
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.manifest import newest_verified
from tests.cluster.cluster import SlurmCluster
from tests.own_programs import HOLDS
from tests.paths import REPOSITORY
from tests.tiny import attempts, curve

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]
CONFIGS = REPOSITORY / "configs"
WAIT_S = 400.0
STEPS = 30


@pytest.fixture
def start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster
) -> Callable[..., Run]:
    """Launch one of the examples, or ``function`` with its settings."""
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)

    def launched(example: str, function: str | None = None) -> Run:
        entry: dict[str, Any] = {"steps": STEPS}
        if function is not None:
            entry["_target_"] = f"tests.own_programs.{function}"
        cluster = "slurm" if function else "local"
        settings: dict[str, Any] = {"runs_dir": str(tmp_path), "logging": {"heartbeat_s": 1.0}}
        return launch(CONFIGS / f"{example}.yaml", cluster=cluster, entry=entry, **settings)

    return launched


def events(run: Run, kind: Kind, rank: int = 0) -> list[dict[str, Any]]:
    return list(read_events(RunDir(run.folder).events(rank), kinds=frozenset({kind})))


def wait_for_step(run: Run, step: int, attempt: int) -> None:
    """Wait until rank 0 has recorded ``step`` in ``attempt``."""
    deadline = time.monotonic() + WAIT_S
    while not any(e["step"] >= step and e["attempt"] == attempt for e in events(run, Kind.STEP)):
        assert time.monotonic() < deadline, f"waited in vain for step {step} of {run.run_id}"
        assert not RunDir(run.folder).summary.exists(), RunDir(run.folder).summary.read_text()
        time.sleep(0.05)


def test_a_torch_loop_and_a_trainer_survive_a_killed_rank_and_a_preemption(
    start: Callable[..., Run], slurm_cluster: SlurmCluster
) -> None:
    """Side by side on two nodes each, so that one job of higher priority preempts both."""
    loop = start("own_torch_loop", "held_torch_loop")
    trainer = start("own_hf_trainer", "held_trainer")
    for run in (loop, trainer):
        wait_for_step(run, HOLDS[1] - 1, 1)
        os.kill(events(run, Kind.START, rank=1)[0]["pid"], signal.SIGKILL)
    for run in (loop, trainer):
        wait_for_step(run, HOLDS[2] - 1, 2)
    high = slurm_cluster.submit_high_priority_job(nodes=4, seconds=2)
    undisturbed = start("own_torch_loop")
    slurm_cluster.wait_for_state(high, "COMPLETED", timeout_s=120)
    for run in (undisturbed, loop, trainer):
        assert run.wait(WAIT_S).state == "finished"
    for run in (loop, trainer):
        assert [end["cause"] for end in attempts(run.folder)] == [
            "rank_died", "preempted", "finished",
        ]  # fmt: skip
        resumed = [event["step"] for event in events(run, Kind.RESUME)]
        assert resumed == [10, HOLDS[2]], "the newest save, then where it was stopped"
        newest = newest_verified(run.run_dir.checkpoints)
        assert newest is not None and newest.name == f"step-{STEPS:08d}"
        assert run.status().total_steps == STEPS
    assert curve(loop.folder) == curve(undisturbed.folder)
    assert sorted(curve(trainer.folder)) == list(range(1, STEPS + 1))
