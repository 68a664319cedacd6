"""Hangs inside jobs of a real Slurm: the rank and its node are named, the job goes on."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.launcher.worker.stacks import parse_dump
from tests.cluster import SlurmCluster
from tests.supervised_slurm import SlurmCountingRun, slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

PLAN = {"steps": 80, "step_s": 0.1, "save_every": 5}
BUDGET_S = 10
SETTINGS: dict[str, Any] = {"resilience": {"hang": {"silence_s": BUDGET_S, "step_s": BUDGET_S}}}


def hang_of(run: SlurmCountingRun) -> dict[str, Any]:
    """What the record of the first attempt says about its hang."""
    hang: dict[str, Any] = run.ends()[0]["evidence"]["hang"]
    return hang


def stacks_of(run: SlurmCountingRun) -> set[int]:
    """Ranks of the first attempt that left a stack dump."""
    dumps = {rank: run.run_dir.stacks(1, rank) for rank in range(4)}
    return {rank for rank, path in dumps.items() if parse_dump(path.read_text()) is not None}


def test_a_stopped_rank_and_its_node_are_named(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=PLAN, nodes=4, **SETTINGS) as run:
        run.wait_for_step(12)
        os.kill(run.rank_pid(2), signal.SIGSTOP)
        stopped_at = time.time()
        run.wait_for(lambda: len(run.ends()) == 1, timeout_s=BUDGET_S + 30)
        end = run.ends()[0]
        print(f"recorded {end['t'] - stopped_at:.1f} s after the stop (budget {BUDGET_S} s):", end)
        run.wait_for_state("COMPLETED")
    assert run.causes() == [("hung", "restart"), ("finished", "done")]
    assert (hang_of(run)["rank"], hang_of(run)["host"]) == (2, "node3")
    assert "rank 2 (node3) hung" in end["explanation"]
    assert stacks_of(run) == {0, 1, 3}
    assert int(run.cluster.job(run.job_id)["Restarts"]) == 0


@pytest.mark.parametrize("kind", ["hang", "lock"])
def test_a_rank_that_is_stuck_is_named_with_its_line(
    slurm_cluster: SlurmCluster, tmp_path: Path, kind: str
) -> None:
    plan = {**PLAN, "fail": {"kind": kind, "rank": 1, "step": 12}}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan, nodes=4, **SETTINGS) as run:
        run.wait_for_state("COMPLETED")
    assert run.causes() == [("hung", "restart"), ("finished", "done")]
    assert (hang_of(run)["rank"], hang_of(run)["host"]) == (1, "node2")
    assert "programs/counting.py:" in hang_of(run)["where"]
    assert stacks_of(run) == {0, 1, 2, 3}
