"""A node that was cut off comes back: what still runs there leaves without a trace."""

from __future__ import annotations

from pathlib import Path

import pytest

from submitrain.events import Kind
from submitrain.processes import ProcessRef
from tests.cluster import ClusterOptions
from tests.cluster.fixtures import ClusterFactory
from tests.local.test_fencing_supervisors import LONG, finish_soon, visible
from tests.supervised_slurm import SlurmCountingRun, slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]


def readable(run: SlurmCountingRun) -> dict[str, str]:
    """Everything that is not attempt 1's own or the job's output, which all its restarts share."""
    return {name: what for name, what in visible(run.run_dir).items() if "_log." not in name}


def references(pids: list[int]) -> list[ProcessRef]:
    return [ref for pid in pids if (ref := ProcessRef.of(pid)) is not None]


def test_the_first_node_thaws_after_slurm_requeued_its_job(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=4, accounting=False))
    with slurm_run(cluster, tmp_path / "run", plan={**LONG, "peer_timeout_s": 3}) as run:
        run.wait_for_step(7)
        old = references([int(run.starts()[0]["pid"]), run.rank_pid(0)])
        cluster.freeze_node("node1")
        cluster.mark_down("node1")
        run.wait_for(lambda: len(run.starts()) == 2, timeout_s=120)
        assert "node1" not in run.starts()[1]["nodes"]
        finish_soon(run)
        run.wait_for_state("COMPLETED")
        before = readable(run)
        cluster.thaw_node("node1")
        run.wait_for(lambda: not any(ref.alive() for ref in old), timeout_s=20)
        assert readable(run) == before
        assert run.wait_for_state("COMPLETED")["Restarts"] == "1"
    assert [end["cause"] for end in run.ends()] == ["lost", "finished"]


def test_a_rank_on_a_lost_node_thaws_beside_the_attempt_that_goes_on_without_it(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=2, accounting=False))
    no_kill = {"additional_parameters": {"requeue": True, "no-kill": True}}
    plan = {**LONG, "peer_timeout_s": 3}
    with slurm_run(cluster, tmp_path / "run", plan=plan, sbatch=no_kill) as run:
        run.wait_for_step(7)
        old = references([run.rank_pid(1)])
        cluster.freeze_node("node2")
        cluster.mark_down("node2")
        run.wait_for(lambda: len(run.starts()) == 2, timeout_s=120)
        assert run.starts()[1]["nodes"] == ["node1"]
        before = run.run_dir.events(1).read_bytes()
        cluster.thaw_node("node2")
        run.wait_for(lambda: not any(ref.alive() for ref in old), timeout_s=20)
        finish_soon(run)
        run.wait_for_state("COMPLETED")
        assert run.run_dir.events(1).read_bytes() == before
    assert [step["attempt"] for step in run.events(Kind.STEP)][-1] == 2
