"""``assess`` on a real Slurm: quiet on a sound cluster, and right about one with many faults."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.document import dump_yaml
from submitrain.launcher.cli.main import main
from tests.cluster import ClusterOptions, SlurmCluster
from tests.cluster.client import wait_until
from tests.cluster.fixtures import require_slurm
from tests.tiny import tiny_config

pytestmark = pytest.mark.slurm

OPTIONS = ClusterOptions(
    gpus_per_node=2,
    slurmd_timeout_s=5,
    extra_slurm_conf=("PartitionName=closed Nodes=node[1-4] MaxTime=01:00:00 State=DOWN",),
)
SLURM = {"nodes": 2, "time": "10m", "gpus_per_node": 0, "mem": "100M"}
CLEAN_RUNS = 20


@pytest.fixture(scope="module")
def site() -> Iterator[SlurmCluster]:
    """A cluster to break."""
    require_slurm(OPTIONS)
    with SlurmCluster.start(OPTIONS) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in {**cluster.env, "HF_HUB_OFFLINE": "1"}.items():
            patch.setenv(name, value)
        yield cluster


@pytest.fixture
def small(tmp_path: Path) -> Iterator[dict[str, Path]]:
    """Two small file systems: one is full, one may only be read."""
    with ExitStack() as stack:
        found = {}
        for name, options in (("full", "size=400k"), ("readonly", "size=400k,ro")):
            found[name] = tmp_path / name
            found[name].mkdir()
            mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(found[name])]
            subprocess.run(mount, check=True)
            stack.callback(subprocess.run, ["umount", str(found[name])], check=True)
        yield found


class Assess:
    """The command as a user gives it."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str], **sections: Any) -> None:
        self._capsys = capsys
        self._config = folder / "cfg.yaml"
        config = {**tiny_config(folder), "cluster": "slurm", **sections}
        self._config.write_text(dump_yaml(config))

    def __call__(self, *more: str) -> tuple[int, dict[str, Any]]:
        """The exit code, and the findings by id."""
        code = main(["assess", "--json", "--config", str(self._config), *more])
        told = json.loads(self._capsys.readouterr().out)
        return code, {one["id"]: one for one in told["findings"]}


def test_a_sound_cluster_never_fails(
    site: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assess = Assess(tmp_path, capsys, slurm=SLURM)
    failures = []
    for _ in range(CLEAN_RUNS):
        code, found = assess()
        failures += [one for one in found.values() if one["level"] == "fail" or code]
    assert not failures
    assert found["slurm.controller"]["level"] == "ok"
    assert "UP" in found["slurm.controller"]["evidence"]
    assert found["slurm.partition.normal"]["level"] == "ok"
    assert "4 nodes: 4 idle" in found["slurm.partition.normal"]["evidence"]
    assert found["slurm.partition.closed"]["level"] == "warn"
    assert found["slurm.gpus"]["evidence"] == "GPUs free: 8 of 8 h100"
    assert "research (default)" in found["slurm.accounts"]["evidence"]
    assert found["slurm.preemption"]["level"] == "warn"
    assert found["config.verdict"]["evidence"] == "starts now"


def test_many_faults_at_once_are_each_told_with_place_and_remedy(
    site: SlurmCluster,
    tmp_path: Path,
    small: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    site.kill_slurmd("node4")
    site.run("scontrol", "update", "NodeName=node2", "State=DRAIN", "Reason=bad fan")
    busy = ["--nodes=1", "--nodelist=node1", "--gres=gpu:1", "--cpus-per-task=8", "--time=10"]
    job = site.sbatch("sleep 300", *busy)
    site.wait_for_state(job, "RUNNING")
    assess = Assess(
        tmp_path,
        capsys,
        slurm={**SLURM, "partition": "closed", "hf_home": str(small["full"])},
        checkpoint={"checkpoint_dir": str(small["readonly"])},
    )
    page = tmp_path / "assess.html"
    try:
        wait_until(lambda: "down" in site.node_states()["node4"], what="node4 down", timeout_s=90)
        code, found = assess("--html", str(page))
    finally:
        site.restore()
    assert code == 1
    normal = found["slurm.partition.normal"]
    assert "4 nodes: 1 idle, 1 alloc, 1 drained, 1 down" in normal["evidence"]
    assert "drained: node2 (bad fan)" in normal["evidence"]
    assert "down: node4 (Not responding" in normal["evidence"]
    assert (normal["level"], "plan with 2 of 4 nodes" in normal["remedy"]) == ("warn", True)
    closed = found["slurm.partition.closed"]
    assert (closed["level"], "another partition" in closed["remedy"]) == ("fail", True)
    assert found["slurm.gpus"]["evidence"].startswith("GPUs free: 3 of 8")
    assert found["folder.hf_cache"]["level"] == "fail"
    assert "full: make room" in found["folder.hf_cache"]["remedy"]
    assert found["folder.checkpoints"]["level"] == "fail"
    assert "Read-only file system" in found["folder.checkpoints"]["evidence"]
    assert found["folder.runs"]["level"] != "fail"
    assert found["config.verdict"]["level"] == "warn"
    assert "partition closed is down" in found["config.verdict"]["evidence"]
    assert "bad fan" in page.read_text()


def test_a_silent_database_leaves_the_nodes_judged(
    site: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assess = Assess(tmp_path, capsys, slurm=SLURM)
    site.pause("slurmdbd")
    try:
        _, found = assess()
    finally:
        site.resume("slurmdbd")
    assert found["slurm.accounting"]["level"] == "warn"
    assert found["slurm.accounts"]["level"] == "unknown"
    assert found["slurm.partition.normal"]["level"] == "ok"


@pytest.mark.parametrize("how", ["paused", "stopped"])
def test_a_controller_that_hangs_or_is_gone_fails(
    site: SlurmCluster, tmp_path: Path, capsys: pytest.CaptureFixture[str], how: str
) -> None:
    assess = Assess(tmp_path, capsys, slurm=SLURM)
    (site.pause if how == "paused" else site.stop_daemon)("slurmctld")
    try:
        code, found = assess()
    finally:
        site.restore()
    assert code == 1
    assert found["slurm.controller"]["level"] == "fail"
    assert "scontrol ping" in found["slurm.controller"]["remedy"]
    assert found["slurm.partitions"]["level"] == "unknown"
    assert found["folder.runs"]["level"] != "fail"
    assert found["config.verdict"]["level"] == "unknown"
