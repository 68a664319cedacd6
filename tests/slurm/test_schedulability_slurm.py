"""What Slurm never starts is called impossible, and nothing else is: on a real Slurm."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from submitrain.config import RunConfig
from submitrain.config.document import dump_yaml
from submitrain.config.job import SlurmConfig
from submitrain.errors import ClusterError
from submitrain.launcher import launch
from submitrain.launcher.checks.objections import request_of
from submitrain.launcher.checks.queue import expect
from submitrain.launcher.checks.schedulability import Outcome, Schedulability, judge, permit
from submitrain.launcher.cli.main import main
from submitrain.launcher.plan.sbatch import sbatch_parameters, script_text
from submitrain.slurm.client import Answer, ask, read_cluster
from tests.cluster import ClusterOptions, SlurmCluster
from tests.cluster.client import wait_until
from tests.cluster.daemon import SlurmClusterError
from tests.cluster.fixtures import require_slurm
from tests.tiny import tiny_config

pytestmark = pytest.mark.slurm

OPTIONS = ClusterOptions(
    gpus_per_node=2,
    max_time="2-00:00:00",
    extra_slurm_conf=(
        "PartitionName=closed Nodes=node[1-4] MaxTime=01:00:00 State=DOWN",
        "PartitionName=away Nodes=node[1-4] MaxTime=01:00:00 State=INACTIVE",
        "PartitionName=pairs Nodes=node[1-2] MaxTime=02:00:00 MaxNodes=2 State=UP",
        "PartitionName=teachers Nodes=node[1-4] MaxTime=01:00:00 AllowAccounts=teaching State=UP",
        "PartitionName=wide Nodes=node[1-4] MaxTime=01:00:00 MinNodes=3 State=UP",
    ),
)
SETUP = (
    "sacctmgr -i add qos short",
    "sacctmgr -i modify qos short set MaxWall=00:30:00 MaxTRESPerJob=node=2 MaxTRESPerUser=cpu=12",
    "sacctmgr -i add qos private",
    "sacctmgr -i add qos long",
    "sacctmgr -i modify qos long set MaxWall=5-0 Flags=PartitionTimeLimit,PartitionMaxNodes",
    "sacctmgr -i modify user root where account=teaching set qos+=long",
    "sacctmgr -i modify user root where account=research set qos+=short",
    "sacctmgr -i modify user root where account=teaching set MaxWall=02:00:00",
    "sacctmgr -i modify account teaching set GrpTRES=node=3",
    "scontrol create reservation=pair starttime=now duration=120 nodes=node[3-4] users=root",
)
SLURM = {"time": "10m", "gpus_per_node": 0, "mem": "100M", "requeue": True}

IMPOSSIBLE: dict[str, tuple[dict[str, Any], str]] = {
    "more nodes than there are": ({"nodes": 9}, "slurm.nodes: 9 nodes"),
    "more nodes than there are, with the spares": ({"nodes": 4, "spare_nodes": 1}, "5 nodes"),
    "a longer time than the partition's": ({"time": "3d"}, "above MaxTime of partition normal"),
    "more nodes than the partition allows": (
        {"partition": "pairs", "nodes": 3},
        "above MaxNodes of partition pairs (2;",
    ),
    "fewer nodes than the partition wants": (
        {"partition": "wide", "nodes": 1},
        "below MinNodes of partition wide (3;",
    ),
    "a partition that takes no jobs": ({"partition": "away"}, "partition away is inactive"),
    "a partition that is not there": ({"partition": "gpu"}, "there is no partition gpu"),
    "more CPUs than a node has": ({"cpus_per_task": 9}, "has with 9 CPUs; the largest has 8"),
    "more memory than a node has": ({"mem": "64G"}, "has with 65536 MiB; the largest has 16000"),
    "more memory by CPU": (
        {"mem": None, "mem_per_cpu": "4G", "cpus_per_task": 8},
        "has with 32768 MiB",
    ),
    "more GPUs than a node has": ({"gpus_per_node": 3}, "has with 3 GPUs; its nodes have 2 h100"),
    "GPUs of another type": ({"gpus_per_node": 1, "gpu_type": "a100"}, "has with 1 a100 GPUs"),
    "GPUs by gres": ({"gpus_per_node": None, "gres": "gpu:h100:4"}, "has with 4 h100 GPUs"),
    "a feature that no node has": ({"constraint": "infiniband"}, "features there: none"),
    "nodes that are not there": ({"nodelist": "node9"}, "there is no node node9"),
    "nodes of another partition": (
        {"partition": "pairs", "nodelist": "node4"},
        "node4 is not in partition pairs",
    ),
    "too many nodes left out": ({"nodes": 3, "exclude": "node[1-2]"}, "beside those left out"),
    "a reservation that is not there": ({"reservation": "nobody"}, "no reservation nobody"),
    "more nodes than the reservation": ({"nodes": 3, "reservation": "pair"}, "in the reservation"),
    "an account of others": ({"account": "physics"}, "not physics: you may charge"),
    "a QOS that is not the account's": ({"qos": "private"}, "not private"),
    "an account that the partition refuses": (
        {"partition": "teachers", "account": "research"},
        "takes teaching, not research",
    ),
    "a longer time than the QOS allows": ({"qos": "short", "time": "40m"}, "MaxWall of QOS short"),
    "more nodes than the QOS allows": ({"qos": "short", "nodes": 3}, "MaxTRESPerJob of QOS short"),
    "more CPUs than the QOS gives a user": (
        {"qos": "short", "nodes": 2, "cpus_per_task": 8, "ntasks_per_node": 1},
        "MaxTRESPerUser of QOS short",
    ),
    "a longer time than the account's": (
        {"account": "teaching", "time": "3h"},
        "MaxWall of your association with account teaching",
    ),
    "more nodes than the account has at all": (
        {"account": "teaching", "nodes": 4},
        "GrpTRES of account teaching",
    ),
}

POSSIBLE: dict[str, dict[str, Any]] = {
    "one node": {},
    "all nodes": {"nodes": 4},
    "as many as there are": {"nodes": "2-4"},
    "all CPUs": {"cpus_per_task": 8, "mem": "1G"},
    "all memory": {"mem": "16000M"},
    "whatever memory there is": {"mem": "0"},
    "memory by CPU": {"mem": None, "mem_per_cpu": "2000M", "cpus_per_task": 8},
    "Slurm's own default for memory": {"mem": None},
    "all GPUs": {"gpus_per_node": 2},
    "all GPUs by type": {"gpus_per_node": 2, "gpu_type": "h100"},
    "GPUs by gres": {"gpus_per_node": None, "gres": "gpu:1"},
    "the longest time": {"time": "2-00:00:00"},
    "the partition's most": {"partition": "pairs", "nodes": 2, "time": "2h"},
    "the partition's least": {"partition": "wide", "nodes": 3},
    "one of several partitions": {"partition": "pairs,normal", "nodes": 3},
    "named nodes": {"nodes": 2, "nodelist": "node[1-2]"},
    "others left out": {"nodes": 2, "exclude": "node[1-2]"},
    "the other account": {"account": "teaching", "partition": "teachers", "nodes": 3},
    "the QOS's most": {"qos": "short", "nodes": 2, "time": "30m", "cpus_per_task": 6},
    "a QOS that lifts the partition's limits": {
        "account": "teaching",
        "qos": "long",
        "partition": "pairs",
        "nodes": 2,
        "time": "4-00:00:00",
    },
    "whole nodes": {"nodes": 2, "exclusive": True},
}


@pytest.fixture(scope="module")
def site() -> Iterator[SlurmCluster]:
    """A cluster with limits of every kind."""
    require_slurm(OPTIONS)
    with SlurmCluster.start(OPTIONS) as cluster, pytest.MonkeyPatch.context() as patch:
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        for command in SETUP:
            cluster.run(*command.split())
        yield cluster


@pytest.fixture(autouse=True)
def nothing_left(site: SlurmCluster) -> Iterator[None]:
    """No job of one test is in the way of the next."""
    yield
    site.cancel_all()
    wait_until(lambda: not site.run("squeue", "-h").strip(), what="no jobs", timeout_s=60)


def script_of(settings: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """submitit's parameters and batch script of a request; its command is replaced by `true`."""
    chosen = {key: value for key, value in {**SLURM, **settings}.items() if value is not None}
    config = SlurmConfig.model_validate(chosen)
    parameters = sbatch_parameters(RunConfig(slurm=config), name="asked", gpus_available=True)
    lines = script_text(parameters, Path("/tmp")).splitlines()
    options = [line for line in lines if line.startswith("#SBATCH") and "put=" not in line]
    quiet = ["#SBATCH --output=/dev/null", "#SBATCH --error=/dev/null"]
    kept = [line for line in options if "--error" not in line]
    return parameters, "\n".join(["#!/bin/bash", *kept, *quiet, "sleep 0.2", ""])


def judged(settings: dict[str, Any]) -> Schedulability:
    parameters, script = script_of(settings)
    return expect(request_of(parameters), script)


def submit(cluster: SlurmCluster, settings: dict[str, Any], folder: Path) -> int | None:
    """Give the request to sbatch itself; None when it refuses."""
    path = folder / "job.sh"
    path.write_text(script_of(settings)[1])
    try:
        return int(cluster.run("sbatch", "--parsable", str(path)))
    except SlurmClusterError:
        return None


def test_what_slurm_never_starts_is_impossible_and_says_why(
    site: SlurmCluster, tmp_path: Path
) -> None:
    wrong = {}
    jobs = {name: submit(site, settings, tmp_path) for name, (settings, _) in IMPOSSIBLE.items()}
    facts = read_cluster()
    assert facts is not None
    for name, (settings, words) in IMPOSSIBLE.items():
        found = judge(request_of(script_of(settings)[0]), facts)
        if found.outcome is not Outcome.IMPOSSIBLE or words not in " | ".join(found.why):
            wrong[name] = found
    time.sleep(6)  # two rounds of the backfill scheduler: what can run on idle nodes does
    for name, job in jobs.items():
        state = "refused" if job is None else site.job(job)["JobState"]
        if state not in ("refused", "PENDING"):
            wrong[f"{name}: Slurm runs it"] = state
    assert not wrong
    assert sum(job is not None for job in jobs.values()) >= 8, "Slurm refused nearly all itself"


def test_reserved_nodes_are_for_those_who_name_the_reservation(site: SlurmCluster) -> None:
    assert judged({"nodes": 2, "reservation": "pair"}).outcome is Outcome.STARTS_NOW
    found = judged({"nodes": 4})
    assert found.outcome is Outcome.WAITS
    assert "4 nodes are asked for and 2 have room now" in found.why


def test_what_slurm_runs_is_never_called_impossible(site: SlurmCluster, tmp_path: Path) -> None:
    site.run("scontrol", "delete", "reservation=pair", check=False)
    site.wait_idle()
    results = {name: judged(settings) for name, settings in POSSIBLE.items()}
    late = {name: one for name, one in results.items() if one.outcome is not Outcome.STARTS_NOW}
    jobs = {name: submit(site, settings, tmp_path) for name, settings in POSSIBLE.items()}
    assert not late
    assert None not in jobs.values(), jobs
    for job in jobs.values():
        assert job is not None
        site.wait_for_state(job, "COMPLETED", timeout_s=120)


def test_a_busy_cluster_means_waiting_with_a_range_and_its_source(site: SlurmCluster) -> None:
    site.wait_idle()
    site.sbatch("sleep 600", "--nodes=3", "--exclusive", "--time=20")
    waiting = site.sbatch("sleep 600", "--nodes=4", "--exclusive", "--time=30")
    wait_until(
        lambda: site.node_states()["node3"].startswith("alloc"), what="three nodes", timeout_s=60
    )
    found = judged({"nodes": 2})
    assert found.outcome is Outcome.WAITS
    assert found.wait_s is not None
    least_s, most_s = found.wait_s
    assert 2400 < least_s <= 2700, "3 nodes x 20 min and 4 x 30 min, on 4 nodes"
    assert 2700 < most_s <= 3000, "first the 20, then the 30 minutes"
    assert "(1 jobs wait)" in found.source
    assert found.suggestions == (
        "slurm.nodes=1-2 starts with what is free, at the same global batch size",
    )
    with pytest.raises(ClusterError, match="--max-wait: at most 00:05:00"):
        permit(found, max_wait_s=300)
    permit(found, max_wait_s=7200)
    assert site.job(waiting)["JobState"] == "PENDING"


def test_a_shorter_time_that_fits_before_the_next_job_is_suggested(site: SlurmCluster) -> None:
    site.wait_idle()
    site.sbatch("sleep 600", "--nodes=3", "--exclusive", "--time=40")
    waiting = site.sbatch("sleep 600", "--nodes=4", "--exclusive", "--time=30")
    wait_until(
        lambda: site.job(waiting)["StartTime"] != "Unknown", what="a planned start", timeout_s=90
    )
    fits, too_long = judged({"nodes": 1, "time": "20m"}), judged({"nodes": 1, "time": "2h"})
    assert (fits.outcome, fits.wait_s and fits.wait_s[0]) == (Outcome.WAITS, 0)
    assert re.search(r"slurm.time=00:3[5-8]:00 fits before", " ".join(too_long.suggestions))
    short = site.sbatch("sleep 600", "--nodes=1", "--time=20")
    site.wait_for_state(short, "RUNNING", timeout_s=60)
    assert site.job(waiting)["JobState"] == "PENDING"


def test_nodes_that_are_away_are_waited_for(site: SlurmCluster) -> None:
    site.wait_idle()
    site.run("scontrol", "update", "NodeName=node4", "State=DRAIN", "Reason=memory")
    found = judged({"nodes": 4})
    site.restore()
    assert found.outcome is Outcome.WAITS
    assert "3 of the right kind are up" in found.why[0]
    assert found.why[1].startswith("`sbatch --test-only` says: ")


def test_a_partition_that_is_down_is_waited_for(site: SlurmCluster) -> None:
    found = judged({"partition": "closed"})
    assert found.outcome is Outcome.WAITS
    assert found.why[0].startswith("partition closed is down")
    assert "slurm.partition=normal can run it" in found.suggestions


def test_a_controller_that_does_not_answer_is_no_answer(site: SlurmCluster) -> None:
    def nobody(command: Sequence[str], *, timeout_s: float = 0) -> Answer:
        return Answer(None, "", f"{command[0]} did not answer within {timeout_s:g} s")

    parameters, script = script_of({"nodes": 99})
    found = expect(request_of(parameters), script, run=nobody)
    assert found.outcome is Outcome.UNKNOWN
    permit(found)


def test_without_the_database_the_nodes_are_judged_and_limits_are_not(site: SlurmCluster) -> None:
    site.pause("slurmdbd")
    try:
        facts = read_cluster(run=_impatient)
    finally:
        site.resume("slurmdbd")
    assert facts is not None
    assert facts.associations is None
    nodes, account = ({"nodes": 9}, {"account": "physics"})
    assert judge(request_of(script_of(nodes)[0]), facts).outcome is Outcome.IMPOSSIBLE
    assert judge(request_of(script_of(account)[0]), facts).outcome is not Outcome.IMPOSSIBLE


def _impatient(command: Sequence[str], *, timeout_s: float = 2) -> Answer:
    return ask(command, timeout_s=2 if command[0] == "sacctmgr" else timeout_s)


def test_a_launch_of_what_cannot_run_is_refused_before_anything_is_made(
    site: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = tiny_config(tmp_path, slurm={"nodes": 9, "time": "3d"})
    with pytest.raises(ClusterError) as refused:
        launch(config, cluster="slurm")
    assert "slurm.time: 3-00:00:00 is above MaxTime of partition normal" in str(refused.value)
    assert "slurm.nodes: 9 nodes are asked for, and 4 is what partition normal has" in str(
        refused.value
    )
    (tmp_path / "cfg.yaml").write_text(dump_yaml(config))
    assert main(["plan", "cfg.yaml", "--cluster", "slurm"]) == 2
    assert not (tmp_path / "runs").exists()
    assert not site.run("squeue", "--noheader").strip()
