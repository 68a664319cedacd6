"""Real training on a real Slurm loses a node and goes on on fewer, with the same losses to 1e-6."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind, curve, read_events
from submitrain.launcher import Run, launch
from submitrain.run_folder import RunDir
from tests.cluster.cluster import SlurmCluster
from tests.cluster.fixtures import require_slurm
from tests.cluster.options import ClusterOptions
from tests.tiny import attempts, consumed, losses, tiny_config

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

WAIT_S = 400.0
SCHEDULE = {"global_batch_size": 8, "grad_acc_steps": None, "max_steps": 30, "ckpt_every_steps": 5}


def config(home: Path, pause_s: float, **slurm: Any) -> dict[str, Any]:
    """The tiny training on three nodes of one rank each, with steps of at least ``pause_s``."""
    optimizer = {"_target_": "tests.components.PacedAdamW", "lr": 3e-3, "pause_s": pause_s}
    shape = {"nodes": 3, "ntasks_per_node": 1, "time": "10m", "cpus_per_task": 1, **slurm}
    made = tiny_config(home, slurm=shape, step_scheduler=SCHEDULE, optimizer=optimizer)
    # Dropout draws by rank, so only without it is the curve the same at another world size.
    made["model"]["config"]["attention_dropout"] = 0.0
    return made


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run on three local ranks; an uneven share of eight sequences a step."""
    run = launch(config(tmp_path_factory.mktemp("reference"), 0.0), cluster="local")
    assert run.wait(WAIT_S).state == "finished"
    return run.folder


@pytest.fixture(scope="module")
def slurm() -> Iterator[SlurmCluster]:
    """Four nodes, found by their SLURM_CONF as a user's cluster is."""
    options = ClusterOptions(nodes=4, accounting=False)
    require_slurm(options)
    with SlurmCluster.start(options) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture
def cluster(slurm: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster, whole again after each test."""
    yield slurm
    slurm.restore()


def lose_one(cluster: SlurmCluster, run: Run) -> None:
    """Lose the node of rank 1 after a few steps, and wait for the end of the run."""
    run_dir = RunDir(run.folder)
    while max(curve(run_dir.events(0)), default=0) < 8:
        assert not run.status().state.ended, run.status()
    start = next(read_events(run_dir.events(1), kinds=frozenset({Kind.START})))
    cluster.lose_node(start["host"])
    assert run.wait(WAIT_S).state == "finished"


def test_fewer_nodes_continue_the_curve_at_the_same_global_batch(
    cluster: SlurmCluster, tmp_path: Path, reference: Path
) -> None:
    run = launch(config(tmp_path, 0.2), cluster="slurm")
    lose_one(cluster, run)
    first, last = attempts(run.folder)
    assert (first["cause"], last["cause"]) == ("node_lost", "finished")
    assert len(last["nodes"]) == 2
    assert losses(run.folder) == pytest.approx(losses(reference), abs=1e-6)
    assert consumed(run.folder) == consumed(reference)
