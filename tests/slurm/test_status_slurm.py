"""On a real Slurm: one query for all jobs, a wait in plain words, and what an ended job used."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from submitrain.monitor.status import Efficiency, read_efficiency
from submitrain.monitor.watch.fleet import Fleet
from submitrain.run_folder import list_runs
from submitrain.status import RunState
from tests.cluster import SlurmCluster
from tests.fleet_parts import run_named, wait_for

pytestmark = [pytest.mark.slurm]
BURN_S = 4
BURN = f"python3 -c 'import time\nb=bytearray(3*10**8)\nwhile time.process_time()<{BURN_S}: pass'"


def sbatch(folder: Path, *options: str) -> str:
    """Submit; returns the job's id."""
    command = ["sbatch", "--parsable", f"--output={folder}/%j.out", *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def test_held_waiting_running_and_ended_jobs_are_told_apart_with_what_they_used(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    burning = sbatch(tmp_path, "--mem=1G", f"--wrap=srun {BURN}")
    held = sbatch(tmp_path, "--hold", "--wrap=true")
    later = sbatch(tmp_path, "--begin=now+1hour", "--wrap=true")
    runs = tmp_path / "runs"
    try:
        for name, job_id in (("burns", burning), ("held", held), ("later", later)):
            run_named(runs, name).submit(cluster="slurm", job_id=job_id)
        fleet = Fleet(find=lambda: list_runs(runs))
        states = wait_for(lambda: running_too(fleet))
        assert states["held"] == "JobHeldUser: its owner holds it"
        assert states["later"] == "BeginTime: its earliest start lies ahead"
        assert fleet.poll().scheduler_answers is True
        ended = wait_for(lambda: used(burning))
    finally:
        subprocess.run(["scancel", burning, held, later], check=False)
    held_s = int(sacct(burning, "CPUTimeRAW"))
    assert BURN_S <= ended.cpu * held_s < BURN_S + 5
    assert 0.2e9 < ended.mem_bytes < 1e9
    assert 0.15 < ended.memory < 1.0


def running_too(fleet: Fleet) -> dict[str, str] | None:
    """Why each run is in its state, once the first one runs."""
    views = {one.status.run_id.partition("-")[0]: one.status for one in fleet.poll().runs}
    if views["burns"].state is not RunState.STARTING:
        return None
    return {name: status.why for name, status in views.items()}


def used(job_id: str) -> Efficiency | None:
    """What a job used, once the accounting knows its end."""
    state = sacct(job_id, "State")
    assert state not in ("FAILED", "CANCELLED"), state
    found = read_efficiency([job_id])
    return found if state == "COMPLETED" and found.mem_bytes else None


def sacct(job_id: str, field: str) -> str:
    """One field of a job in the accounting."""
    command = ["sacct", "-X", "-n", "-P", "-j", job_id, "-o", field]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()
