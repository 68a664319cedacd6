"""A sweep on a real Slurm: limited at once, preempted, cancelled as one, resumed, measured."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from submitrain.errors import ConfigError
from submitrain.launcher import Sweep, launch
from submitrain.launcher.sweeps.folder import PointState
from submitrain.launcher.sweeps.report import EMULATED
from submitrain.status import RunState
from tests.cluster.cluster import SlurmCluster
from tests.paths import TOY_RANK
from tests.tiny import tiny_config

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]
WAIT_S = 300.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster) -> Path:
    """A user's project as the working directory on a machine with Slurm; ranks only count."""
    shutil.copy(TOY_RANK, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def begin(folder: Path, nodes: list[int], **options: Any) -> Sweep:
    slurm = {"ntasks_per_node": 1, "cpus_per_task": 1, "gpus_per_node": 0, "time": "5m"}
    config = tiny_config(folder, cluster="slurm", checkpoint={"enabled": False}, slurm=slurm)
    shape = {"steps": 20, "warmup": 5, "mode": "weak", **options}
    begun: Sweep = launch.sweep(config, nodes=nodes, **shape)  # type: ignore[attr-defined]
    return begun


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.3)


def states(begun: Sweep) -> list[PointState]:
    return begun.status()[1]


def first(begun: Sweep) -> PointState:
    return states(begun)[0]


def test_a_sweep_survives_a_preemption_is_cancelled_as_one_and_goes_on(
    project: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster
) -> None:
    monkeypatch.setenv("TOY_STEP_S", "0.4")
    begun = begin(project, [1, 2, 4], repeats=1, at_once=1)
    jobs = [one.status.job_ids[0] for one in states(begun) if one.status]
    assert len(jobs) == 3, "all are submitted"
    for before, job in pairwise(jobs):
        assert slurm_cluster.job(int(job))["Dependency"].startswith(f"afterany:{before}")

    wait_for(lambda: first(begun).status and first(begun).status.step > 0)
    high = slurm_cluster.submit_high_priority_job(nodes=4, seconds=1)
    slurm_cluster.wait_for_state(high, "COMPLETED", timeout_s=120)
    wait_for(lambda: first(begun).finished)
    assert slurm_cluster.job(int(jobs[0]))["Restarts"] == "1"

    wait_for(lambda: states(begun)[1].alive and states(begun)[1].status.step > 0)
    assert set(begun.cancel()) == {one.point.id for one in states(begun)[1:]}
    wait_for(lambda: begun.status()[0] == "cancelled")
    assert [one.word for one in states(begun)[1:]] == [RunState.CANCELLED] * 2

    monkeypatch.setenv("TOY_STEP_S", "0.1")
    again = Sweep.open(begun.folder).resume()
    wait_for(lambda: again.status()[0] == "finished")
    assert [len(one.folders) for one in states(again)] == [1, 2, 2], "what finished runs no more"
    report = again.report()
    [preempted] = [one for one in report.points if one.point.id == first(again).point.id]
    assert preempted.state.folder is not None
    assert preempted.measured.restarts == 1
    assert not preempted.unused, "most of its steps were warm before or after"
    assert preempted.measured.steps < 20
    [series] = report.series
    assert sum(one.restarts for one in series.curve.counts) == 1
    assert [one.failures for one in report.points] == [0, 0, 0]
    assert report.emulated.startswith("4 nodes were 1 machine")
    assert report.as_json()["emulated_why"].startswith(EMULATED)
    waits = [one.measured.wait_s for one in report.points if one.state.folder]
    assert all(wait is not None and wait < 60 for wait in waits), (
        f"what it waited for its turn in the sweep is not the queue's: {waits}"
    )


def test_a_sweep_whose_first_job_is_refused_leaves_nothing(project: Path) -> None:
    with pytest.raises(ConfigError, match=r"^slurm\.partition: there is no partition nowhere"):
        begin(project, [1], overrides=["slurm.partition=nowhere"])
    assert not (project / "runs").exists()
