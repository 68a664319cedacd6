"""A new job where Slurm does not take the old one back, on a real Slurm; never against a cancel."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind
from submitrain.launcher.run import Run
from submitrain.launcher.submit.claims import read_submissions
from submitrain.launcher.supervisor.requeue import resubmit
from submitrain.run_folder import write_json_atomically
from submitrain.status import RunState
from tests.cluster import ClusterOptions, PreemptMode, SlurmCluster
from tests.cluster.fixtures import ClusterFactory
from tests.supervised import rank_environment
from tests.supervised_slurm import SlurmCountingRun, slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

LONG = {"steps": 10_000, "step_s": 0.1, "save_every": 5}
NO_REQUEUE = {"time": 1, "additional_parameters": {"no-requeue": True}}
SHORT: dict[str, Any] = {"sbatch": NO_REQUEUE, "resilience": {"stop_lead_s": 50}}
"""A minute is Slurm's shortest limit: about ten seconds of it are for steps."""


def steps(run: SlurmCountingRun) -> list[int]:
    return [event["step"] for event in run.events(Kind.STEP)]


def handle(cluster: SlurmCluster, run: SlurmCountingRun, patch: pytest.MonkeyPatch) -> Run:
    """The run as a user of this cluster sees it."""
    for name, value in cluster.env.items():
        patch.setenv(name, value)
    return Run(run.run_dir.root)


def test_time_limits_of_jobs_that_may_not_be_requeued_are_gone_through_by_new_jobs(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"steps": 150, "step_s": 0.1}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan, **SHORT) as run:
        seen = handle(slurm_cluster, run, monkeypatch)
        status = seen.wait(timeout=200)
        assert status.state is RunState.FINISHED
        assert list(status.job_ids) == [str(job) for job in run.jobs()]
    assert run.causes()[-1] == ("finished", "done")
    assert {cause for cause, action in run.causes() if action == "resubmit"} == {"time_limit"}
    assert len(run.jobs()) >= 2
    assert steps(run) == list(range(1, 151))
    lines = read_submissions(run.run_dir)
    assert [line["after"] for line in lines[1:]] == [str(job) for job in run.jobs()[:-1]]
    assert {line["via"] for line in lines[1:]} == {"supervisor"}


def test_new_jobs_are_counted_over_the_whole_chain(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    settings = {**SHORT, "resilience": {"stop_lead_s": 52, "max_requeues": 1}}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG, **settings) as run:
        run.wait_for(run.run_dir.summary.exists, timeout_s=120)
        assert len(run.jobs()) == 2
    assert run.causes()[-1] == ("time_limit", "stop")
    assert "resilience.max_requeues (1) is spent" in run.summary["explanation"]


def test_a_preemption_that_cancels_is_followed_by_a_new_job(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=2, preempt_mode=PreemptMode.CANCEL))
    with slurm_run(cluster, tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(10)
        cluster.submit_high_priority_job(nodes=2, seconds=2)
        run.wait_for_state("PREEMPTED")
        run.wait_for(lambda: len(run.jobs()) == 2)
        run.wait_for(lambda: len(run.events(Kind.RESUME)) == 2, timeout_s=60)
        last = max(steps(run)) + 5
        write_json_atomically(run.run_dir.root / "counting.json", {**LONG, "steps": last})
        assert run.causes()[0][0] == "preempted"
        assert not run.run_dir.summary.exists()
        stopped = run.events(Kind.STOPPED)[0]["step"]
        assert run.events(Kind.RESUME)[1]["step"] == stopped


def test_a_cancelled_run_gets_no_new_job_and_its_new_job_is_cancelled_too(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG, **SHORT) as run:
        seen = handle(slurm_cluster, run, monkeypatch)
        run.wait_for(lambda: len(run.jobs()) == 2, timeout_s=60)
        seen.cancel()
        assert seen.wait(timeout=60).state is RunState.CANCELLED
        time.sleep(8)
        assert len(run.jobs()) == 2
        queue = slurm_cluster.run("squeue", "--noheader", "--format=%i", "--states=PD,R")
        assert not {str(job) for job in run.jobs()} & set(queue.split())


def test_a_cancel_during_the_last_stop_is_final(
    slurm_cluster: SlurmCluster, tmp_path: Path
) -> None:
    plan = {**LONG, "save_s": 2.0, "save_every": 1000}
    with slurm_run(slurm_cluster, tmp_path / "run", plan=plan, **SHORT) as run:
        run.wait_for(lambda: bool(run.run_dir.newest_attempt()), timeout_s=60)
        run.wait_for(run.run_dir.stop_request(1).exists, timeout_s=60)
        write_json_atomically(run.run_dir.cancel_request, {"by": "test"})
        run.wait_for(run.run_dir.summary.exists, timeout_s=60)
        assert len(run.jobs()) == 1
    assert run.summary["state"] == "cancelled"


def test_a_cancel_that_comes_while_the_new_job_is_submitted_ends_that_job(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user saw only the old job, so whoever submits the new one has to cancel it."""
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG, **SHORT) as run:
        handle(slurm_cluster, run, monkeypatch)
        run.wait_for_step(3)
        write_json_atomically(run.run_dir.cancel_request, {"by": "test"})
        new = int(resubmit(run.run_dir, str(run.job_id), ()))
        slurm_cluster.wait_for_state(new, "CANCELLED")


def test_a_new_job_whose_submitter_died_first_enters_itself(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed right after sbatch: the new job is the only one who knows of itself."""
    with slurm_run(slurm_cluster, tmp_path / "run", plan=LONG) as run:
        seen = handle(slurm_cluster, run, monkeypatch)
        for name, value in rank_environment().items():
            monkeypatch.setenv(name, value)
        run.wait_for_step(3)
        monkeypatch.setattr(
            "submitrain.launcher.supervisor.requeue.note_submission", lambda *_: None
        )
        new = resubmit(run.run_dir, str(run.job_id), ())
        run.wait_for(lambda: len(run.starts()) == 2, timeout_s=60)
        assert run.starts()[1]["job_id"] == new
        line = read_submissions(run.run_dir)[-1]
        assert (line["job_id"], line["via"], line["after"]) == (new, "supervisor", str(run.job_id))
        assert seen.status().job_ids == (str(run.job_id), new)
        slurm_cluster.wait_for_state(run.job_id, "FAILED")  # fenced: the run is the new job's
        assert run.causes() == [("lost", "stop")]
        assert not run.run_dir.summary.exists()
