"""Preflight in jobs of a real Slurm: the right node is named, and the run goes on without it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.document import dump_yaml
from submitrain.launcher.cli.main import main
from tests.broken_nodes import full, instead_of, read_only, unnamed
from tests.cluster import ClusterOptions, SlurmCluster
from tests.cluster.fixtures import require_slurm
from tests.supervised import REPOSITORY
from tests.supervised_slurm import SlurmCountingRun, slurm_run
from tests.tiny import tiny_config

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

SHORT = {"steps": 5, "step_s": 0.05}
NO_KILL = {"additional_parameters": {"requeue": True, "no-kill": True}}
WRONG_SUMS = """
import sys
class Find:
    def find_spec(self, name, path, target=None):
        if name == "submitrain.train.distributed.trial":
            import torch.distributed as dist
            right = dist.all_reduce
            def wrong(values, *args, **more):
                values[-1] += 1
                return right(values, *args, **more)
            dist.all_reduce = wrong
sys.meta_path.insert(0, Find())
"""
SLOW = """
import sys
class Find:
    def find_spec(self, name, path, target=None):
        if name == "submitrain.train.distributed.trial":
            import torch
            right = torch.mm
            torch.mm = lambda a, b: [right(a, b) for _ in range(4)][-1]
sys.meta_path.insert(0, Find())
"""


@pytest.fixture(scope="module")
def preflight_cluster() -> Iterator[SlurmCluster]:
    """Four nodes without accounting, for all tests of this file."""
    options = ClusterOptions(nodes=4, accounting=False)
    require_slurm(options)
    with SlurmCluster.start(options) as cluster:
        if not cluster.site.own_hostnames:
            pytest.skip("needs a mount namespace for every node: run as root")
        yield cluster


@pytest.fixture
def cluster(preflight_cluster: SlurmCluster) -> Iterator[SlurmCluster]:
    """The cluster, whole again after each test."""
    yield preflight_cluster
    preflight_cluster.restore()


@pytest.fixture
def site(tmp_path: Path) -> Path:
    """A folder of packages that all tasks import from; nodes can be given another one."""
    return site_packages(tmp_path / "site")


def site_packages(folder: Path, *, version: str = "1.0", code: str = "") -> Path:
    (folder / f"demo-{version}.dist-info").mkdir(parents=True)
    (folder / "sitecustomize.py").write_text(code)
    return folder


def spare_run(
    cluster: SlurmCluster, folder: Path, site: Path, mode: str, *, hold: bool = False
) -> AbstractContextManager[SlurmCountingRun]:
    """A run on one of four nodes, with three spares; held until it is released if asked for."""
    options = {"requeue": True, "no-kill": True, **({"hold": True} if hold else {})}
    return slurm_run(
        cluster,
        folder / "run",
        plan=SHORT,
        nodes=1,
        slurm={"spare_nodes": 3},
        top={"preflight": mode},
        sbatch={"additional_parameters": options},
        environ={"PYTHONPATH": f"{site}:{REPOSITORY}"},
    )


def findings(run: SlurmCountingRun, node: str, attempt: int = 1) -> dict[str, tuple[str, str]]:
    """Level and evidence of every check on a node."""
    record = json.loads(run.run_dir.preflight(attempt).read_text())
    return {one["id"]: (one["level"], one["evidence"]) for one in record["findings"][node]}


def failed(run: SlurmCountingRun, node: str, attempt: int = 1) -> dict[str, str]:
    found = findings(run, node, attempt)
    return {id: evidence for id, (level, evidence) in found.items() if level == "fail"}


def wait_for_end(run: SlurmCountingRun) -> dict[str, Any]:
    run.wait_for(run.run_dir.summary.exists, timeout_s=240)
    return run.summary


def test_a_full_folder_other_packages_and_a_frozen_node_are_left_out(
    cluster: SlurmCluster, tmp_path: Path, site: Path
) -> None:
    other = site_packages(tmp_path / "other", version="2.0")
    with ExitStack() as broken:
        run = broken.enter_context(spare_run(cluster, tmp_path, site, "quick", hold=True))
        broken.enter_context(full(cluster, "node2", run.run_dir.root, tmp_path / "tiny"))
        broken.enter_context(instead_of(cluster, "node3", site, other))
        cluster.freeze_node("node4")
        cluster.run("scontrol", "release", str(run.job_id))
        summary = wait_for_end(run)
        cluster.thaw_node("node4")
    assert (summary["state"], summary["step"]) == ("finished", 5)
    (start,) = run.starts()
    assert (start["nodes"], start["nodes_idle"]) == (["node1"], ["node2", "node3", "node4"])
    assert failed(run, "node1") == {}
    assert "No space left on device" in failed(run, "node2")["node.folder"]
    assert "demo is 2.0, 1.0 elsewhere" in failed(run, "node3")["node.software"]
    assert "runs no tasks" in failed(run, "node4")["node.answers"]
    assert set(start["preflight"]["unfit"]) == {"node2", "node3", "node4"}
    (end,) = run.ends()
    assert {one["node"] for one in end["strikes"] if one["alone"]} == {"node2", "node3", "node4"}


def test_a_missing_name_a_slow_rank_and_wrong_sums_are_left_out(
    cluster: SlurmCluster, tmp_path: Path, site: Path
) -> None:
    slow = site_packages(tmp_path / "slow", code=SLOW)
    wrong = site_packages(tmp_path / "wrong", code=WRONG_SUMS)
    with ExitStack() as broken:
        broken.enter_context(unnamed(cluster, "node2", tmp_path))
        broken.enter_context(instead_of(cluster, "node3", site, slow))
        broken.enter_context(instead_of(cluster, "node4", site, wrong))
        run = broken.enter_context(spare_run(cluster, tmp_path, site, "full"))
        summary = wait_for_end(run)
    assert summary["state"] == "finished"
    assert run.starts()[0]["nodes"] == ["node1"]
    assert failed(run, "node1") == {}
    assert "its own name node2 does not resolve" in failed(run, "node2")["node.name"]
    assert set(failed(run, "node3")) == {"ranks.compute"}
    assert set(failed(run, "node4")) == {"ranks.pairs"}
    assert "came out wrong" in failed(run, "node4")["ranks.pairs"]


def test_without_a_spare_the_run_goes_back_into_the_queue_once(
    cluster: SlurmCluster, tmp_path: Path
) -> None:
    settings: dict[str, Any] = {"resilience": {"elastic": False}, "top": {"preflight": "quick"}}
    root = tmp_path / "run"
    with ExitStack() as broken:
        broken.enter_context(read_only(cluster, "node2", tmp_path))
        run = broken.enter_context(
            slurm_run(cluster, root, plan=SHORT, nodes=2, sbatch=NO_KILL, **settings)
        )
        summary = wait_for_end(run)
    assert summary["state"] == "finished"
    assert run.causes() == [("preflight", "requeue"), ("finished", "done")]
    assert "Read-only file system" in failed(run, "node2")["node.folder"]
    first, second = run.starts()
    assert first["nodes"] == ["node1", "node2"]
    assert "node2" not in second["nodes"]
    assert run.ends()[0]["nodes_excluded"] == ["node2"]
    assert second["preflight"]["nodes"] == {"ok": 2}


def test_assess_looks_at_nodes_by_a_job_of_its_own(
    cluster: SlurmCluster,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {**cluster.env, "PYTHONPATH": str(REPOSITORY)}.items():
        monkeypatch.setenv(name, value)
    config, runs = tmp_path / "cfg.yaml", tmp_path / "runs"
    slurm = {"nodes": 2, "time": "10m", "gpus_per_node": 0, "ntasks_per_node": 1, "mem": "100M"}
    config.write_text(dump_yaml({**tiny_config(tmp_path), "cluster": "slurm", "slurm": slurm}))
    runs.mkdir()
    command = ["assess", "--config", str(config), "--nodes"]
    with read_only(cluster, "node2", runs):
        code = main([*command, "4"])
    told = capsys.readouterr()
    (folder,) = (runs / "assess").iterdir()
    record = json.loads((folder / "attempts" / "001" / "preflight.json").read_text())
    assert (code, list(record["unfit"])) == (1, ["node2"])
    assert "--exclude=node2" in told.out
    assert "Read-only file system" in " ".join(told.out.split())
    assert "runs preflight checks on 4 nodes" in told.err
    levels = {(one["id"], one["level"]) for one in record["findings"]["node3"]}
    assert {("ranks.meet", "ok"), ("ranks.reduce", "ok")} <= levels
    assert main([*command, "2", "--quick", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["nodes"] == {"ok": 2}
    assert main([*command, "9"]) != 0
    assert "9 nodes" in capsys.readouterr().err
