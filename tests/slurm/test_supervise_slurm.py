"""The supervisor inside jobs of a real Slurm: every way in which a job may be disturbed."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind
from submitrain.processes import ProcessRef
from submitrain.run_folder import write_json_atomically
from submitrain.signals import StopReason
from tests.cluster import ClusterOptions, PreemptMode, SlurmCluster
from tests.cluster.fixtures import ClusterFactory
from tests.supervised_slurm import SlurmCountingRun, slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

QUICK = {"steps": 20, "step_s": 0.05, "save_every": 5}
LONG = {"steps": 10_000, "step_s": 0.1, "save_every": 5}


def steps(run: SlurmCountingRun) -> list[int]:
    return [event["step"] for event in run.events(Kind.STEP)]


def restarts(run: SlurmCountingRun) -> int:
    return int(run.cluster.job(run.job_id)["Restarts"])


def shorten(run: SlurmCountingRun, more: int = 20) -> None:
    """Let the run finish soon: the last step is a few steps after the newest one."""
    last = max(steps(run), default=0) + more
    write_json_atomically(run.run_dir.root / "counting.json", {**LONG, "steps": last})


def test_a_run_over_all_nodes_finishes(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=QUICK, nodes=4, tasks=2) as run:
        run.wait_for_state("COMPLETED")
    assert run.causes() == [("finished", "done")]
    hosts = {run.events(Kind.START, rank)[0]["host"] for rank in range(8)}
    assert hosts == {"node1", "node2", "node3", "node4"}


def test_a_killed_rank_is_restarted_in_the_same_job(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    plan = {**QUICK, "steps": 60}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan) as run:
        run.wait_for_step(12)
        os.kill(run.rank_pid(1), signal.SIGKILL)
        run.wait_for_state("COMPLETED")
        assert restarts(run) == 0
    assert run.causes() == [("rank_died", "restart"), ("finished", "done")]
    assert "rank 1 (node2) was killed by SIGKILL" in run.ends()[0]["explanation"]
    assert run.events(Kind.RESUME)[1]["step"] >= 10


def test_an_exception_of_the_program_fails_the_job_at_once(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    plan = {**QUICK, "fail": {"kind": "error", "rank": 1, "step": 3}}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan) as run:
        run.wait_for_state("FAILED")
    assert run.causes() == [("program_error", "stop")]
    assert "rank 1 (node2) raised ValueError at step 3" in run.summary["explanation"]
    assert "programs/counting.py:" in run.summary["explanation"]


def test_a_run_goes_through_several_time_limits_without_losing_a_step(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    # Slurm's shortest limit is a minute: ask for the stop 48 s before it, so that stretches are
    # short, and for 25 s of steps.
    plan = {"steps": 250, "step_s": 0.1}
    settings: dict[str, Any] = {"sbatch": {"time": 1}, "resilience": {"stop_lead_s": 48}}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan, **settings) as run:
        run.wait_for_state("COMPLETED", timeout_s=240)
        assert restarts(run) == len(run.causes()) - 1
    assert run.causes()[-1] == ("finished", "done")
    assert run.causes()[:-1] == [("time_limit", "requeue")] * (len(run.causes()) - 1)
    assert len(run.causes()) >= 3
    assert steps(run) == list(range(1, 251))


def test_slurms_warning_long_before_the_limit_stops_nothing(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """The signal comes up to a minute early: obeyed, it would cost a short job its whole time."""
    settings: dict[str, Any] = {
        "sbatch": {"time": 1, "signal_delay_s": 50},
        "resilience": {"stop_lead_s": 10},
    }
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG, **settings) as run:
        run.wait_for(lambda: len(run.ends()) == 1, timeout_s=90)
        assert run.causes() == [("time_limit", "requeue")]
        warned, stopped = run.events(Kind.WARNED)[0], run.events(Kind.STOPPED)[0]
        assert stopped["reason"] == StopReason.ASKED
        assert stopped["step"] > warned["step"] + 10


def test_a_preemption_with_notice_requeues_once(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG, nodes=4) as run:
        run.wait_for_step(10)
        slurm_cluster.submit_high_priority_job(nodes=4, seconds=2)
        run.wait_for(lambda: len(run.ends()) == 1, timeout_s=60)
        assert run.causes() == [("preempted", "requeue")]
        assert run.events(Kind.WARNED)
        assert run.events(Kind.STOPPED)[0]["reason"] == StopReason.ASKED
        saved = run.saved_step
        run.wait_for(lambda: len(run.events(Kind.RESUME)) == 2, timeout_s=120)
        assert run.events(Kind.RESUME)[1]["step"] == saved
        shorten(run)
        run.wait_for(lambda: len(run.starts()) == 2)
        assert restarts(run) == 1


def test_scancel_is_final(slurm_cluster: SlurmCluster, tmp_path: Path) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(10)
        slurm_cluster.run("scancel", str(run.job_id))
        run.wait_for_state("CANCELLED")
        run.wait_for(run.run_dir.summary.exists)
        time.sleep(8)  # longer than a requeued job waits here
        assert slurm_cluster.job(run.job_id)["JobState"] == "CANCELLED"
    assert run.causes() == [("cancelled", "stop")]
    assert run.summary["state"] == "cancelled"
    assert run.events(Kind.STOPPED)[0]["step"] == run.saved_step


def test_a_cancel_request_without_scancel_ends_the_job_too(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(10)
        write_json_atomically(run.run_dir.cancel_request, {"by": "test"})
        run.wait_for_state("FAILED")
    assert run.causes() == [("cancelled", "stop")]


def test_an_administrators_requeue_is_left_to_slurm(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(10)
        slurm_cluster.run("scontrol", "requeue", str(run.job_id))
        run.wait_for(lambda: len(run.events(Kind.RESUME)) == 2, timeout_s=60)
        assert run.causes() == [("requeued", "leave")]
        assert run.events(Kind.RESUME)[1]["step"] == run.events(Kind.STOPPED)[0]["step"]
        assert restarts(run) == 1


def test_a_job_that_slurm_may_not_requeue_says_how_to_go_on(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {
        "sbatch": {"time": 1, "additional_parameters": {"no-requeue": True}},
        "resilience": {"stop_lead_s": 50, "resubmit": False},
    }
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG, **settings) as run:
        run.wait_for_state("FAILED")
    assert run.summary["state"] == "stopped"
    assert run.summary["cause"] == "time_limit"
    assert "launcher resume" in run.summary["explanation"]


def test_a_killed_supervisor_brings_the_job_back(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    """Slurm alone takes the job for failed; the shell around the supervisor requeues it."""
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(10)
        pid = run.rank_pid(1)
        os.kill(int(run.starts()[0]["pid"]), signal.SIGKILL)
        run.wait_for(lambda: len(run.events(Kind.RESUME)) == 2, timeout_s=60)
        assert ProcessRef.of(pid) is None
        assert run.causes() == [("lost", "leave")]
        assert run.events(Kind.RESUME)[1]["step"] >= 10
        assert restarts(run) == 1


def test_preemption_without_notice_saves_within_killwait(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=2, accounting=False))
    with slurm_run(cluster, tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(10)
        cluster.submit_high_priority_job(nodes=2, seconds=2)
        run.wait_for(lambda: len(run.events(Kind.RESUME)) == 2, timeout_s=90)
        assert run.causes() == [("preempted", "leave")]
        assert run.events(Kind.RESUME)[1]["step"] == run.events(Kind.STOPPED)[0]["step"]
        assert restarts(run) == 1
        slurm_scancel(cluster, run)


def test_a_preemption_that_cancels_leaves_a_run_that_can_be_resumed(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    options = ClusterOptions(nodes=2, preempt_mode=PreemptMode.CANCEL)
    cluster = make_cluster(options)
    settings: dict[str, Any] = {"resilience": {"resubmit": False}}
    with slurm_run(cluster, tmp_path / "run", plan=LONG, **settings) as run:
        run.wait_for_step(10)
        cluster.submit_high_priority_job(nodes=2, seconds=2)
        run.wait_for_state("PREEMPTED")
        run.wait_for(run.run_dir.summary.exists)
        assert run.causes() == [("preempted", "stop")]
        assert run.summary["state"] == "stopped"
        assert run.saved_step == run.events(Kind.STOPPED)[0]["step"]


def slurm_scancel(cluster: SlurmCluster, run: SlurmCountingRun) -> None:
    """Without accounting a cancelled job stays cancelled as well."""
    run.wait_for_step(run.saved_step + 5)
    cluster.run("scancel", str(run.job_id))
    run.wait_for_state("CANCELLED")
    run.wait_for(run.run_dir.summary.exists)
    assert run.summary["state"] == "cancelled"
