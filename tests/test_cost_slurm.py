"""On a real Slurm: hours equal a sum over sacct, and the trail tells of a requeue."""

from __future__ import annotations

import subprocess
from decimal import Decimal
from pathlib import Path

import pytest

from monitor.audit.read import read_trail
from monitor.cost.bill import By, make_bill
from monitor.cost.charges import charges_of
from monitor.cost.prices import PriceTable
from monitor.cost.read import read_runs
from monitor.cost.tres import Unit
from tests.slurm import SlurmCluster
from tests.supervised_slurm import slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]


def test_hours_of_a_requeued_run_equal_those_of_sacct(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    plan = {"steps": 80, "step_s": 0.1, "save_every": 5}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan) as run:
        run.wait_for_step(10, timeout_s=120)
        subprocess.run(["scontrol", "requeue", str(run.job_id)], check=True)
        run.wait_for_state("PENDING")
        # A requeued job waits for two minutes (BeginTime) unless its user says otherwise.
        subprocess.run(["scontrol", "update", f"JobId={run.job_id}", "StartTime=now"], check=False)
        run.wait_for_state("COMPLETED", timeout_s=240)
        run_dir, job_id = run.run_dir, run.job_id
    rows = subprocess.run(
        ["sacct", "-X", "-D", "-n", "-P", "-j", str(job_id), "-o", "ElapsedRaw,AllocCPUS"],
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()
    assert len(rows) == 2
    seconds = sum(int(elapsed) * int(cpus) for elapsed, cpus in (row.split("|") for row in rows))
    facts, problem = read_runs([run_dir.root])
    assert problem == ""
    (row,) = make_bill(charges_of(facts[0]), PriceTable(), By.RUN).rows
    assert (row.unit, Decimal(row.used_us) / 1_000_000) == (Unit.CORE, seconds)
    assert (row.allocations, row.requeues) == (2, 1)
    assert row.attempts == len(run.starts()) == 2
    trail = read_trail(run_dir)
    assert not trail.broken
    steps = [one["facts"]["step"] for one in trail.entries if one["act"] == "checkpoint"]
    assert steps[-1] == 80
