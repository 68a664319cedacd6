"""What is started for an attempt: srun's command line, environments, ends of tasks."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.config import RunConfig
from submitrain.launcher.supervisor.evidence import RankExit
from submitrain.launcher.supervisor.processes import LocalSpawner, rank_environment
from submitrain.launcher.supervisor.srun import (
    StepShape,
    parse_exits,
    srun_command,
    srun_environment,
    step_ended_for,
)
from submitrain.run_folder import RunDir

RUN = RunDir(Path("/shared/runs/demo"))
SHAPE = StepShape(num_nodes=4, tasks_per_node=8, cpus_per_task=16, has_gpus=True)


def config(**slurm: Any) -> RunConfig:
    return RunConfig.model_validate({"slurm": {"nodes": 4, "ntasks_per_node": 8, **slurm}})


def test_the_command_line_of_a_step() -> None:
    assert srun_command(SHAPE, config(srun_args=["--mpi=none"]), RUN, attempt=3) == [
        "srun",
        "--kill-on-bad-exit=0",
        "--wait=0",
        "--overlap",
        "--nodes=4",
        "--ntasks=32",
        "--ntasks-per-node=8",
        "--job-name=attempt-003",
        "--input=none",
        "--output=/shared/runs/demo/logs/attempt-003/rank%5t.out",
        "--error=/shared/runs/demo/logs/attempt-003/rank%5t.err",
        "--export=ALL",
        "--cpus-per-task=16",
        "--gpu-bind=none",
        "--mpi=none",
        sys.executable,
        "-m",
        "submitrain.launcher.worker.rank",
    ]


def test_without_gpus_and_cpus_nothing_is_said_about_them() -> None:
    shape = StepShape(num_nodes=1, tasks_per_node=2, cpus_per_task=None, has_gpus=False)
    command = srun_command(shape, config(), RUN, attempt=1)
    assert not [flag for flag in command if flag.startswith(("--cpus-per-task", "--gpu"))]


def test_percent_signs_of_a_folder_are_not_taken_for_patterns() -> None:
    command = srun_command(SHAPE, config(), RunDir(Path("/runs/50%t")), attempt=1)
    assert "--output=/runs/50%%t/logs/attempt-001/rank%5t.out" in command


def test_bindings_of_the_batch_step_do_not_reach_the_ranks() -> None:
    given_ = {"SLURM_CPU_BIND": "x", "SLURM_CPU_BIND_LIST": "x", "SLURM_MEM_BIND_TYPE": "x"}
    assert srun_environment({**given_, "SLURM_JOB_ID": "7"}) == {"SLURM_JOB_ID": "7"}


def test_the_users_code_comes_first_and_the_working_directory_not_at_all() -> None:
    found = rank_environment({"PYTHONPATH": "/mine"}, RUN, attempt=2, job_id="7", extra={})
    assert found["PYTHONPATH"] == "/shared/runs/demo/code:/mine"
    assert found["PYTHONSAFEPATH"] == "1"


def test_local_ranks_learn_their_place_on_a_simulated_node(tmp_path: Path) -> None:
    spawner = LocalSpawner(RunDir(tmp_path), "7", num_nodes=2, tasks_per_node=3)
    found = spawner.environment(1, 4)
    assert found["SUBMITRAIN_RANK"] == "4"
    assert found["SUBMITRAIN_WORLD_SIZE"] == "6"
    assert found["SUBMITRAIN_LOCAL_RANK"] == "1"
    assert found["SUBMITRAIN_LOCAL_WORLD_SIZE"] == "3"


CAPTURED = """\
srun: error: node2: task 1: Killed
srun: launch/slurm: _step_signal: Terminating StepId=4.0
srun: error: node1: task 0: Terminated
srun: error: node2: tasks 2-3,5: Exited with exit code 85
srun: Force Terminated StepId=4.0
"""
"""As srun 22.05.8 wrote it, with another task list."""


def test_the_ends_of_tasks_are_read_from_sruns_words() -> None:
    assert parse_exits(CAPTURED) == (
        RankExit(1, -9, "node2"),
        RankExit(0, -15, "node1", ours=True),
        RankExit(2, 85, "node2", ours=True),
        RankExit(3, 85, "node2", ours=True),
        RankExit(5, 85, "node2", ours=True),
    )


@pytest.mark.parametrize(
    ("how", "code"),
    [
        ("Segmentation fault (core dumped)", -11),
        ("Aborted", -6),
        ("Out Of Memory", -9),
        ("Exited with exit code 1", 1),
    ],
)
def test_ends_in_sruns_wording(how: str, code: int) -> None:
    assert parse_exits(f"srun: error: gpu-01: task 12: {how}\n") == (RankExit(12, code, "gpu-01"),)


@given(st.text())
def test_any_other_text_says_nothing_about_tasks(text: str) -> None:
    assert parse_exits(text) == ()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (
            "*** STEP 1.0 ON node1 CANCELLED AT 2026-11-22T15:54:13 DUE TO PREEMPTION ***",
            "PREEMPTION",
        ),
        (
            "*** STEP 3.0 ON node1 CANCELLED AT 2026-11-22T15:54:24 DUE TO JOB REQUEUE ***",
            "JOB REQUEUE",
        ),
        ("*** STEP 4.0 ON node1 CANCELLED AT 2026-11-22T15:54:34 ***", ""),
        ("step 4 cancelled", None),
    ],
)
def test_slurmstepd_says_why_it_ends_a_step(line: str, why: str | None) -> None:
    assert step_ended_for(f"slurmstepd-node1: error: {line}\n") == why


def test_a_step_on_some_nodes_of_the_job_names_them() -> None:
    shape = StepShape(2, 8, None, has_gpus=False, nodelist=("node1", "node3"))
    command = srun_command(shape, config(), RUN, attempt=1)
    assert "--nodelist=node1,node3" in command
    assert "--nodes=2" in command
