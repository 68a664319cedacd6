"""Launching on a real Slurm: submitted once, found again, refused in one line, no secrets."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.errors import ClusterError
from submitrain.launcher import Run, launch
from submitrain.launcher.submit.submit import job_environment
from submitrain.run_folder import list_runs
from submitrain.status import RunState
from tests.cluster.cluster import SlurmCluster
from tests.paths import TOY_RANK
from tests.tiny import tiny_config
from tests.user_folders import SAYS, write_config, write_modules

pytestmark = pytest.mark.slurm
WAIT_S = 180.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster) -> Path:
    """A user's project as the working directory on a machine with Slurm."""
    shutil.copy(TOY_RANK, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def config(folder: Path, **slurm: Any) -> dict[str, Any]:
    """A toy run of two ranks on two nodes."""
    steps = {"max_steps": 10}
    shape = {"nodes": 2, "ntasks_per_node": 1, "time": "10m"}
    return tiny_config(folder, step_scheduler=steps, cluster="auto", slurm={**shape, **slurm})


def put_sbatch_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, before: str, after: str
) -> Path:
    """An ``sbatch`` in the way of the real one; every call leaves a line in the returned file."""
    real, calls = shutil.which("sbatch"), folder / "calls"
    script = folder / "bin" / "sbatch"
    script.parent.mkdir()
    script.write_text(f'#!/bin/bash\necho call >> {calls}\n{before}\n{real} "$@"\n{after}\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    return calls


def test_a_run_goes_through_slurm_and_leaves_no_secret(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MY_HF", "hf-5Ecr3t-1")
    run = launch(config(project, hf_token="${MY_HF}"))
    assert run.wait(WAIT_S).state is RunState.FINISHED
    [script] = run.run_dir.submitit.glob("*_submission.sh")
    assert "#SBATCH --nodes=2" in script.read_text()
    files = [path for path in run.folder.rglob("*") if path.is_file()]
    assert [path for path in files if b"5Ecr3t" in path.read_bytes()] == []


def test_a_cancelled_job_ends_as_cancelled(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOY_STEP_S", "2")
    run = launch(config(project))
    deadline = time.monotonic() + WAIT_S
    while not run.metrics():
        assert time.monotonic() < deadline
        time.sleep(0.2)
    run.cancel()
    assert run.wait(WAIT_S).state is RunState.CANCELLED


def test_a_refused_job_is_one_line_and_leaves_nothing(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ClusterError, match=r"^slurm: sbatch refused the job: Invalid partition"):
        launch(config(project, partition="nowhere"), force=True)
    assert not (project / "runs").exists()
    assert capfd.readouterr().err == ""


def test_a_job_that_slurm_took_although_sbatch_failed_is_adopted_not_repeated(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1"
    calls = put_sbatch_first(project, monkeypatch, "", failure)
    run = launch(config(project), force=True)  # without `sbatch --test-only`
    assert run.wait(WAIT_S).state is RunState.FINISHED
    assert calls.read_text() == "call\n"


def test_a_submission_that_failed_for_a_moment_is_tried_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failure = "echo 'sbatch: error: Batch job submission failed: Socket timed out' >&2; exit 1"
    first = f"[ $(wc -l < {project / 'calls'}) -gt 1 ] || {{ {failure}; }}"
    calls = put_sbatch_first(project, monkeypatch, first, "")
    run = launch(config(project), force=True)  # without `sbatch --test-only`
    assert run.wait(WAIT_S).state is RunState.FINISHED
    assert calls.read_text() == "call\n" * 2


def test_a_launch_from_inside_a_job_is_not_confused_by_its_variables(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SBATCH_PARTITION", "nowhere")
    monkeypatch.setenv("SLURM_NTASKS", "64")
    assert launch(config(project)).wait(WAIT_S).state is RunState.FINISHED


def test_only_a_surrounding_jobs_variables_are_dropped() -> None:
    outer = {"SLURM_JOB_ID": "1", "SBATCH_QOS": "x", "SUBMITRAIN_ATTEMPT": "3"}
    kept = {"SLURM_CONF": "/etc/slurm.conf", "HF_TOKEN": "t", "SUBMITRAIN_RANK_MODULE": "m"}
    environ = job_environment({**outer, **kept, "PYTHONPATH": "old"}, "new")
    assert environ == {**kept, "PYTHONPATH": "new", "PYTHONSAFEPATH": "1"}


def test_a_run_is_opened_and_asked_about_without_the_launching_process(project: Path) -> None:
    run = launch(config(project))
    assert Run.open(run.run_id).wait(WAIT_S).state is RunState.FINISHED


def test_the_users_own_train_py_trains_on_the_nodes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster
) -> None:
    """From a folder with `train.py`, `launcher.py`, `monitor.py`: none is taken for ours."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    folder = tmp_path / "mine"
    write_modules(folder)
    write_config(folder, cluster="slurm")
    done = subprocess.run(
        [Path(sys.executable).with_name("submitrain"), "cfg.yaml"],
        cwd=folder,
        env={**os.environ, **slurm_cluster.env},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    [found] = list_runs(folder / "runs")
    run = Run(found)
    assert run.wait(WAIT_S).state is RunState.FINISHED
    assert (run.folder / "was-here").read_text() == SAYS
