"""Lost nodes, spares, bad nodes and ranges of nodes, in jobs of a real Slurm."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind
from submitrain.monitor.audit.ledger import read_trail
from submitrain.run_folder import write_json_atomically
from tests.cluster import ClusterOptions, SlurmCluster
from tests.cluster.fixtures import require_slurm
from tests.supervised_slurm import SlurmCountingRun, slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

LONG = {"steps": 10_000, "step_s": 0.1, "save_every": 5, "peer_timeout_s": 3}
NO_KILL = {"additional_parameters": {"requeue": True, "no-kill": True}}


@pytest.fixture(scope="module")
def nodes_cluster() -> Iterator[SlurmCluster]:
    """Four nodes without accounting, for all tests of this file."""
    options = ClusterOptions(nodes=4, accounting=False)
    require_slurm(options)
    with SlurmCluster.start(options) as cluster:
        yield cluster


@pytest.fixture
def cluster(nodes_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster, whole again after each test."""
    yield nodes_cluster
    nodes_cluster.restore()


def steps(run: SlurmCountingRun) -> list[int]:
    return [event["step"] for event in run.events(Kind.STEP)]


def restarts(run: SlurmCountingRun) -> int:
    return int(run.cluster.job(run.job_id)["Restarts"])


def wait_for_next_start(run: SlurmCountingRun) -> dict[str, Any]:
    """The start of the second attempt, once it has made new steps."""
    run.wait_for(lambda: len(run.starts()) == 2, timeout_s=120)
    run.wait_for_step(max(steps(run)) + 5, timeout_s=60)
    return run.starts()[1]


def test_a_spare_takes_the_place_of_a_lost_node(cluster: SlurmCluster, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"slurm": {"spare_nodes": 1}, "sbatch": NO_KILL}
    with slurm_run(cluster, tmp_path / "run", plan=LONG, **settings) as run:
        run.wait_for_step(5)
        assert run.starts()[0]["nodes"] == ["node1", "node2"]
        assert run.starts()[0]["nodes_idle"] == ["node3"]
        cluster.lose_node("node2")
        start = wait_for_next_start(run)
        assert (start["nodes"], start["world_size"]) == (["node1", "node3"], 2)
        assert restarts(run) == 0
    (end,) = run.ends()
    assert (end["cause"], end["action"]) == ("node_lost", "restart")
    assert "node2 was lost" in end["explanation"]
    assert "node3 takes the place of node2" in end["explanation"]
    assert set(end["nodes_lost"]) == {"node2"}
    assert end["strikes"][0]["node"] == "node2"


def test_the_living_nodes_go_on_without_a_spare(cluster: SlurmCluster, tmp_path: Path) -> None:
    with slurm_run(cluster, tmp_path / "run", plan=LONG, nodes=3, sbatch=NO_KILL) as run:
        run.wait_for_step(5)
        cluster.lose_node("node3")
        start = wait_for_next_start(run)
        assert (start["nodes"], start["world_size"]) == (["node1", "node2"], 2)
        assert restarts(run) == 0
    assert run.causes() == [("node_lost", "restart")]
    assert "continues with 2 of 3 nodes, without node3" in run.ends()[0]["explanation"]


def test_an_inelastic_run_goes_back_into_the_queue_without_the_lost_node(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"resilience": {"elastic": False}, "sbatch": NO_KILL}
    with slurm_run(cluster, tmp_path / "run", plan=LONG, nodes=2, **settings) as run:
        run.wait_for_step(5)
        cluster.lose_node("node2")
        run.wait_for(lambda: len(run.ends()) == 1, timeout_s=60)
        run.wait_for(lambda: restarts(run) == 1)
        cluster.start_daemon("node2")  # it is back before the job is, and must not be used
        start = wait_for_next_start(run)
        assert start["world_size"] == 2
        assert "node2" not in start["nodes"]
        assert cluster.job(run.job_id)["ExcNodeList"] == "node2"
    assert run.causes() == [("node_lost", "requeue")]
    (asked,) = [one for one in read_trail(run.run_dir).entries if one["act"] == "requeue"]
    assert (asked["outcome"], asked["job_id"]) == ("asked", str(run.job_id))
    assert (asked["attempt"], asked["facts"]["cause"]) == (1, "node_lost")
    assert run.ends()[0]["nodes_excluded"] == ["node2"]


def test_a_frozen_node_is_found_by_its_silence(cluster: SlurmCluster, tmp_path: Path) -> None:
    """Its ranks neither die nor speak, their peers wait: only heartbeats and Slurm can tell."""
    plan = {**LONG, "peer_timeout_s": 600}
    settings: dict[str, Any] = {"slurm": {"spare_nodes": 1}, "sbatch": NO_KILL}
    with slurm_run(cluster, tmp_path / "run", plan=plan, **settings) as run:
        run.wait_for_step(5)
        cluster.freeze_node("node2")
        start = wait_for_next_start(run)
        assert start["nodes"] == ["node1", "node3"]
        cluster.thaw_node("node2")
        run.wait_for_step(max(steps(run)) + 5)
        assert len(run.starts()) == 2
    assert run.causes() == [("node_lost", "restart")]


def test_a_node_with_two_strikes_is_replaced_by_a_spare(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    plan = {**LONG, "fail": {"kind": "kill", "rank": 1, "step": 8, "attempts": [1, 2]}}
    settings: dict[str, Any] = {"slurm": {"spare_nodes": 1}, "sbatch": NO_KILL}
    with slurm_run(cluster, tmp_path / "run", plan=plan, **settings) as run:
        run.wait_for(lambda: len(run.starts()) == 3, timeout_s=60)
        run.wait_for_step(15)
        nodes = [start["nodes"] for start in run.starts()]
    assert nodes == [["node1", "node2"], ["node1", "node2"], ["node1", "node3"]]
    assert run.causes() == [("rank_died", "restart")] * 2
    assert "node2 has 2 strikes" in run.ends()[1]["explanation"]


def test_a_struck_node_is_left_behind_at_the_requeue(cluster: SlurmCluster, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"resilience": {"elastic": False, "max_strikes": 1}}
    with slurm_run(cluster, tmp_path / "run", plan=LONG, sbatch=NO_KILL, **settings) as run:
        run.wait_for_step(5)
        os.kill(run.rank_pid(1), signal.SIGKILL)
        assert "node2" not in wait_for_next_start(run)["nodes"]
        assert restarts(run) == 1
    assert run.causes() == [("rank_died", "requeue")]
    assert run.ends()[0]["nodes_excluded"] == ["node2"]


def test_nodes_that_the_job_cannot_do_without_are_used_again(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"resilience": {"elastic": False, "max_strikes": 1}}
    with slurm_run(
        cluster, tmp_path / "run", plan=LONG, nodes=4, sbatch=NO_KILL, **settings
    ) as run:
        run.wait_for_step(5)
        os.kill(run.rank_pid(1), signal.SIGKILL)
        assert len(wait_for_next_start(run)["nodes"]) == 4
        assert restarts(run) == 0
    assert "node2 would be avoided, but then too few nodes" in run.ends()[0]["explanation"]


def test_a_range_of_nodes_starts_with_what_is_free(cluster: SlurmCluster, tmp_path: Path) -> None:
    cluster.sbatch("sleep 600", "--nodes=2", "--exclusive", "--nodelist=node1,node2")
    with slurm_run(cluster, tmp_path / "run", plan=LONG, nodes="2-4", sbatch=NO_KILL) as run:
        run.wait_for_step(5)
        write_json_atomically(run.run_dir.root / "counting.json", {**LONG, "steps": 10})
        assert run.starts()[0]["world_size"] == 2
        assert run.starts()[0]["nodes"] == ["node3", "node4"]


def test_a_range_of_nodes_takes_all_that_it_may_have(cluster: SlurmCluster, tmp_path: Path) -> None:
    with slurm_run(cluster, tmp_path / "run", plan=LONG, nodes="2-3", sbatch=NO_KILL) as run:
        run.wait_for_step(5)
        assert run.starts()[0]["world_size"] == 3
