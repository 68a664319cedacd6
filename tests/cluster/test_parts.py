"""The parts of the cluster tool that need no Slurm."""

from __future__ import annotations

import pytest

from tests.cluster.fixtures import not_run_lines
from tests.cluster.jobs import parse_job
from tests.cluster.options import ClusterOptions, missing_packages
from tests.cluster.ports import free_ports


def test_parse_job_tells_similar_fields_apart() -> None:
    line = (
        "JobId=3 JobName=my job GroupId=root(0) MCS_label=N/A ReqNodeList=(null) "
        "ExcNodeList=(null) NodeList=node[1-2] CPUs/Task=1 TRES=cpu=2,mem=4000M,gres/gpu=16 "
        "Command=(null) Power="
    )
    fields = parse_job(line + "\n")
    assert fields == {
        "JobId": "3",
        "JobName": "my job",
        "GroupId": "root(0)",
        "MCS_label": "N/A",
        "ReqNodeList": "(null)",
        "ExcNodeList": "(null)",
        "NodeList": "node[1-2]",
        "CPUs/Task": "1",
        "TRES": "cpu=2,mem=4000M,gres/gpu=16",
        "Command": "(null)",
        "Power": "",
    }


def test_free_ports_are_all_different() -> None:
    assert len(set(free_ports(50))) == 50


def test_missing_packages_of_an_empty_host_are_all_packages() -> None:
    packages = missing_packages(ClusterOptions(), path="/nonexistent")
    assert packages == [
        "mariadb-server",
        "munge",
        "slurm-client",
        "slurmctld",
        "slurmd",
        "slurmdbd",
        "util-linux",
    ]


def test_without_accounting_no_database_is_missing() -> None:
    packages = missing_packages(ClusterOptions(accounting=False), path="/nonexistent")
    assert not {"slurmdbd", "mariadb-server"} & set(packages)


def test_an_impossible_option_is_named() -> None:
    with pytest.raises(ValueError, match=r"ClusterOptions.nodes: expected an integer >= 1, got 0"):
        ClusterOptions(nodes=0)


def test_the_summary_names_what_did_not_run_and_the_remedy() -> None:
    reason = "Skipped: needs a real Slurm: sudo apt-get install slurmd"
    skipped = [
        pytest.TestReport(
            nodeid=name,
            location=("", 0, ""),
            keywords={},
            outcome="skipped",
            longrepr=("fixtures.py", 1, text),
            when="setup",
        )
        for name, text in [("a", reason), ("b", reason), ("c", "Skipped: needs a GPU")]
    ]
    assert not_run_lines(skipped) == [
        "2 tests did NOT run, because they need a real Slurm:",
        "    a",
        "    b",
        "To run them: sudo apt-get install slurmd",
    ]
