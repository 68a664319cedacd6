"""On a real Slurm: hours equal a sum over sacct, and the trail tells of a requeue."""

from __future__ import annotations

import re
import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from submitrain.monitor.accounting.cli import read_runs
from submitrain.monitor.accounting.cost import By, charges_of, make_bill
from submitrain.monitor.accounting.prices import PriceTable, Unit
from submitrain.monitor.audit.ledger import read_trail
from tests.cluster import SlurmCluster
from tests.supervised_slurm import slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]


def test_gpu_hours_of_a_requeued_run_equal_those_of_sacct_and_no_array_is_charged_to_it(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    plan = {"steps": 80, "step_s": 0.1, "save_every": 5}
    gpus = {"gpus_per_node": "h100:2"}
    before = array(slurm_cluster)
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan, sbatch=gpus) as run:
        # Ids of arrays lie on both sides of the run's, and its tasks have ids of their own.
        after = array(slurm_cluster)
        run.wait_for_step(10, timeout_s=120)
        subprocess.run(["scontrol", "requeue", str(run.job_id)], check=True)
        run.wait_for_state("PENDING")
        # A requeued job waits for two minutes (BeginTime) unless its user says otherwise.
        subprocess.run(["scontrol", "update", f"JobId={run.job_id}", "StartTime=now"], check=False)
        run.wait_for_state("COMPLETED", timeout_s=240)
        run_dir, job_id = run.run_dir, run.job_id
    rows = accounted("-D", "-j", str(job_id))
    assert len(rows) == 2
    seconds = sum(elapsed * gpu_count for elapsed, gpu_count in rows)
    assert {gpu_count for _, gpu_count in rows} == {4}
    usage, problem = read_runs([run_dir.root])
    assert problem == ""
    (row,) = make_bill(charges_of(usage[0]), PriceTable(), By.RUN).rows
    assert (row.unit, Decimal(row.used_us) / 1_000_000) == (Unit.GPU, seconds)
    assert (row.allocations, row.requeues) == (2, 1)
    assert row.attempts == len(run.starts()) == 2
    check_everything(before, after, job_id, run_seconds=seconds)
    trail = read_trail(run_dir)
    assert not trail.broken
    steps = [one["facts"]["step"] for one in trail.entries if one["act"] == "checkpoint"]
    assert steps[-1] == 80


def array(cluster: SlurmCluster) -> int:
    """Somebody's job array on GPUs, three tasks of about a second."""
    return cluster.sbatch("sleep 1", "--array=0-2", "--gpus-per-node=1", "--mem=10M")


def accounted(*which: str) -> list[tuple[int, int]]:
    """Seconds and GPUs of allocations as sacct prints them."""
    out = subprocess.run(
        ["sacct", "-X", "-n", "-P", *which, "-o", "ElapsedRaw,AllocTRES"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    found = []
    for line in out:
        elapsed, _, tres = line.partition("|")
        total = re.search(r"gres/gpu=(\d+)", tres)
        found.append((int(elapsed), int(total[1]) if total else 0))
    return found


def check_everything(before: int, after: int, job_id: int, *, run_seconds: int) -> None:
    """An array's tasks are in the accounting beside the run, and each is a job of its own."""
    ids = f"{before},{after},{job_id}"
    everything = sum(seconds * count for seconds, count in accounted("-D", "-j", ids))
    arrays = accounted("-D", "-j", f"{before},{after}")
    assert len(arrays) == 6
    assert {count for _, count in arrays} == {1}
    assert everything - run_seconds == sum(seconds for seconds, _ in arrays) > 0
