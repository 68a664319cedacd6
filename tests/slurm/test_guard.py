"""The guard: a job whose first node is lost comes back, although Slurm would let it go on alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitrain.events import Kind
from submitrain.launcher.supervisor.guard import JobHealth, judge
from submitrain.slurm.jobs import NOT_FOUND, UNKNOWN, JobInfo
from tests.cluster import ClusterOptions
from tests.cluster.fixtures import ClusterFactory
from tests.supervised_slurm import slurm_run

SEEN = {
    "whole": (JobInfo("7", "RUNNING", nodes=("a", "b")), JobHealth.FINE),
    "without its first node": (JobInfo("7", "RUNNING", nodes=("b",)), JobHealth.ORPHANED),
    "without its last node": (JobInfo("7", "RUNNING", nodes=("a",)), JobHealth.FINE),
    "no answer": (JobInfo("7", UNKNOWN), JobHealth.FINE),
    "nodes not said": (JobInfo("7", "RUNNING"), JobHealth.FINE),
    "restarted elsewhere": (JobInfo("7", "RUNNING", nodes=("b",), restarts=1), JobHealth.OVER),
    "requeued": (JobInfo("7", "PENDING"), JobHealth.OVER),
    "ending": (JobInfo("7", "COMPLETING", nodes=("b",)), JobHealth.OVER),
    "forgotten": (JobInfo("7", NOT_FOUND), JobHealth.OVER),
}


@pytest.mark.parametrize("name", SEEN)
def test_only_a_running_job_without_its_first_node_is_orphaned(name: str) -> None:
    job, expected = SEEN[name]
    assert judge(job, "a", 0) is expected


@pytest.mark.slurm
@pytest.mark.ranks
def test_a_run_that_lost_its_first_node_goes_on_elsewhere(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=3, accounting=False))
    plan = {"steps": 10_000, "step_s": 0.1, "save_every": 5, "peer_timeout_s": 3}
    options = {"requeue": True, "no-kill": True, "gpus-per-node": 1}
    settings = {"additional_parameters": options}
    with slurm_run(cluster, tmp_path / "run", plan=plan, nodes=2, sbatch=settings) as run:
        run.wait_for_step(12)
        cluster.lose_node("node1")
        cluster.mark_down("node1")
        run.wait_for(lambda: len(run.events(Kind.RESUME)) == 2, timeout_s=120)
        assert run.causes() == [("lost", "leave")]
        assert run.starts()[-1]["nodes"] == ["node2", "node3"]
        assert run.events(Kind.RESUME)[1]["step"] >= 10
        assert int(cluster.job(run.job_id)["Restarts"]) == 1
