"""Whether requests can run on clusters that tests cannot start, in Slurm's words as captured."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from submitrain.errors import ClusterError, UserError
from submitrain.launcher.checks.objections import request_of
from submitrain.launcher.checks.queue import backfilled, gap_s, parse_test_only, work_ahead
from submitrain.launcher.checks.schedulability import (
    Outcome,
    Schedulability,
    judge,
    max_wait_s,
    permit,
)
from submitrain.slurm.client import Answer, read_cluster
from submitrain.slurm.cluster import ClusterFacts, parse_nodes, parse_partitions, parse_reservations
from submitrain.slurm.parse import megabytes, parse_gres, parse_tres

NODE = (
    "NodeName={name} Arch=x86_64 CoresPerSocket=8  CPUAlloc=0 CPUEfctv=8 CPUTot=8 CPULoad=8.54"
    " AvailableFeatures={features} ActiveFeatures=(null) Gres={gres} NodeAddr=127.0.0.1"
    " RealMemory=32000 AllocMem=0 FreeMem=18545 Sockets=1 Boards=1 State={state}"
    " Partitions=normal  CfgTRES=cpu=8,mem=16000M,billing=8 AllocTRES= \n"
)
PARTITION = (
    "PartitionName={name} AllowGroups=ALL AllowAccounts={accounts} AllowQos=ALL Default={default}"
    " QoS=N/A DefaultTime=01:00:00 Hidden=NO MaxNodes=2 MaxTime=1-00:00:00 MinNodes=0"
    " MaxCPUsPerNode=UNLIMITED Nodes={nodes} State={state} TotalNodes=2{more}\n"
)
CONFIG = """Configuration data as of 2026-11-27T14:22:28
AccountingStorageEnforce = {enforce}
AccountingStorageType   = accounting_storage/slurmdbd
ClusterName             = here
DefMemPerCPU            = 8000
JobSubmitPlugins        = {plugins}
SelectTypeParameters    = CR_CORE_MEMORY
"""
MINE = "physics|physics-sub||normal|normal||||||||\n"
ACCOUNTS = "physics|root||||||||\nphysics-sub|physics||||||||\n"
QOS = "normal|||||||||||\nlong|||||||||||PartitionTimeLimit\n"


def node(name: str, *, gres: str = "gpu:h100:2", state: str = "IDLE", features: str = "x") -> str:
    return NODE.format(name=name, gres=gres, state=state, features=features)


def partition(name: str = "normal", **words: str) -> str:
    usual = {"accounts": "ALL", "default": "YES", "nodes": "n[1-2]", "state": "UP", "more": ""}
    return PARTITION.format(name=name, **{**usual, **words})


def cluster(**said: Any) -> ClusterFacts:
    """A cluster of two nodes that says these words; None: it does not answer."""
    answers = {
        "node": node("n1") + node("n2"),
        "partition": partition(),
        "config": CONFIG.format(enforce="associations,limits,qos", plugins="(null)"),
        "reservation": "No reservations in the system\n",
        "user": MINE,
        "assoc": ACCOUNTS,
        "qos": QOS,
        **said,
    }

    def run(command: Sequence[str], *, timeout_s: float = 0) -> Answer:
        text = answers[next(word for word in command if word in answers)]
        return Answer(None, "", "silent") if text is None else Answer(0, text, "")

    facts = read_cluster(run=run, user="ada")
    assert facts is not None
    return facts


def judged(facts: ClusterFacts | None = None, **parameters: Any) -> Schedulability:
    return judge(request_of({"time": 60, "nodes": 1, **parameters}), facts or cluster())


def extra(**options: Any) -> dict[str, Any]:
    return {"additional_parameters": options}


def test_sizes_and_counts_in_slurms_spellings() -> None:
    assert [megabytes(text) for text in ("64G", "16000M", "16000", "1.5T", "2048K", "x")] == [
        65536, 16000, 16000, 1572864, 2, None,
    ]  # fmt: skip
    assert parse_tres("cpu=32,mem=62.50G,node=4,gres/gpu=8,gres/gpu:h100=8") == {
        "cpu": 32, "mem": 64000, "node": 4, "gres/gpu": 8, "gres/gpu:h100": 8,
    }  # fmt: skip
    assert parse_gres("gpu:h100:8(S:0-1),gpu:a100:2,shard:4") == {"h100": 8, "a100": 2}
    assert parse_gres("gpu:4") == {"": 4}
    assert parse_gres("(null)") == {}


@pytest.mark.parametrize(
    ("state", "is_up"),
    [
        ("IDLE", True),
        ("MIXED+PLANNED", True),
        ("IDLE+CLOUD+POWERED_DOWN", True),
        ("IDLE*", False),
        ("DOWN*+DRAIN", False),
        ("IDLE+DRAIN", False),
        ("ALLOCATED+MAINT+RESERVED", False),
    ],
)
def test_whether_a_node_takes_jobs(state: str, is_up: bool) -> None:
    assert parse_nodes(node("n1", state=state))["n1"].is_up is is_up


def test_what_fits_starts_now() -> None:
    assert judged(nodes=2, gpus_per_node="h100:2", mem="0").outcome is Outcome.STARTS_NOW


LEGAL: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "memory that is only a default": ({}, {"cpus_per_task": 8}),
    "memory by GPU": (
        {},
        {"cpus_per_task": 8, "gpus_per_node": 2} | extra(**{"mem-per-gpu": "4G"}),
    ),
    "two types of GPU": (
        {"node": node("n1", gres="gpu:a100:2,gpu:v100:2")},
        {"gres": "gpu:a100:2,gpu:v100:2"},
    ),
    "tasks that share CPUs": ({}, {"ntasks_per_node": 16} | extra(overcommit=True)),
    "a shorter time will do": ({}, {"time": 3000} | extra(**{"time-min": "12:00:00"})),
    "a feature that a reboot gives": (
        {"node": node("n1", features="knl,flat")},
        {"constraint": "flat"},
    ),
    "counts of features": ({}, {"constraint": "[rack1*2|rack2*2]"}),
    "a QOS that may be longer": (
        {"user": MINE.replace("normal|normal", "long,normal|normal")},
        {"qos": "long", "time": 3000},
    ),
    "a QOS that nobody can ask about": (
        {"qos": None, "user": MINE.replace("normal|normal", "long,normal|normal")},
        {"qos": "long", "time": 3000},
    ),
    "accounts that nobody can ask about": ({"user": None}, {"account": "any", "time": 3000}),
    "one of several QOS": ({}, {"qos": "normal,high"}),
    "a QOS where none is enforced": (
        {"config": CONFIG.format(enforce="associations", plugins="(null)")},
        {"qos": "high"},
    ),
    "an account below the one that is allowed": (
        {"partition": partition(accounts="physics")},
        {"account": "Physics-Sub"},
    ),
    "a partition with a substitute": (
        {"partition": partition(state="DRAIN", more=" Alternate=other")},
        {},
    ),
    "nodes outside of a flexible reservation": (
        {"reservation": "ReservationName=r Nodes=n1 Flags=FLEX Users=ada Accounts=(null)\n"},
        {"nodes": 2} | extra(reservation="r"),
    ),
    "one of two reservations": (
        {"reservation": "ReservationName=r Nodes=n1 Users=ada Accounts=(null)\n"},
        extra(reservation="gone,r"),
    ),
    "a reservation against some users": (
        {"reservation": "ReservationName=r Nodes=n1 Users=-bob Accounts=(null)\n"},
        extra(reservation="r"),
    ),
    "the partition of the reservation": (
        {
            "partition": partition(default="NO"),
            "reservation": "ReservationName=r Nodes=n1 PartitionName=normal Users=ada\n",
        },
        extra(reservation="r"),
    ),
}


@pytest.mark.parametrize(("said", "asked"), LEGAL.values(), ids=LEGAL.keys())
def test_legal_requests_are_never_impossible(said: dict[str, Any], asked: dict[str, Any]) -> None:
    found = judged(cluster(**said), **asked)
    assert found.outcome is not Outcome.IMPOSSIBLE, found


@pytest.mark.parametrize("plugins", ["lua", "(null)"])
def test_a_site_that_chooses_partitions_itself_is_not_second_guessed(plugins: str) -> None:
    said = {
        "partition": partition(default="NO"),
        "config": CONFIG.format(enforce="limits", plugins=plugins),
    }
    wanted = Outcome.UNKNOWN if plugins == "lua" else Outcome.IMPOSSIBLE
    assert judged(cluster(**said)).outcome is wanted


def test_a_qos_without_the_flag_lifts_nothing() -> None:
    found = judged(qos="normal", time=3000)
    assert found.outcome is Outcome.IMPOSSIBLE
    assert found.why == (
        "slurm.time: 2-02:00:00 is above MaxTime of partition normal (1-00:00:00; the site's "
        "administrators set it); ask for 1-00:00:00 or less",
    )


def test_of_two_limits_the_one_that_is_defined_first_counts() -> None:
    qos = "normal|5:00:00||||||||||\n"
    assert judged(cluster(qos=qos, user=MINE.replace("normal|||", "normal|1:00:00||", 1)),
                   time=120).outcome is Outcome.STARTS_NOW  # fmt: skip


def test_hidden_partitions_and_reservations_are_read() -> None:
    partitions = parse_partitions(partition("a") + partition("b", state="DOWN", default="NO"))
    assert [one.is_open for one in partitions.values()] == [True, False]
    assert parse_reservations("No reservations in the system\n") == {}


def test_what_test_only_says() -> None:
    said = "sbatch: Job 3 to start at 1000 using 32 processors on nodes node[1-4] in partition x"
    assert parse_test_only(said, now=400.0) == (600.0, "")
    refused = "allocation failure: Requested node configuration is not available"
    assert parse_test_only(refused, now=0.0) == (
        None,
        "Requested node configuration is not available",
    )
    assert parse_test_only("sbatch: error: nobody home", now=0.0) == (None, "")


def test_the_work_ahead_is_added_up_without_jobs_that_are_not_ahead() -> None:
    lines = [
        "4 PENDING 30:00 30:00 5000 Resources",
        "2 RUNNING 1:00:00 10:00 1000 None",
        "8 PENDING 1:00:00 1:00:00 N/A Dependency",
        "1 PENDING UNLIMITED UNLIMITED N/A Priority",
    ]
    assert work_ahead(lines[:3]) == (4 * 1800 + 2 * 600, 1, [5000.0])
    assert work_ahead(lines)[1:] == (2, [5000.0])


@pytest.mark.parametrize(
    ("planned", "expected_s"),
    [
        ([], None),
        ([5000.0], 3900),
        ([900.0, 5000.0], 3900),
        ([5000.0, 2000.0], 900),
        ([1030.0], 0),
    ],
    ids=["nothing comes", "the next job", "one is late", "the earlier", "at once"],
)
def test_the_gap_ends_with_the_next_planned_start(
    planned: list[float], expected_s: int | None
) -> None:
    request = request_of({"nodes": 1, "time": 120, "partition": "normal"})
    assert gap_s(request, cluster(), ["normal"], planned, now=1000.0) == expected_s


def test_the_gap_ends_with_a_reservation_of_others() -> None:
    line = "ReservationName=m StartTime=5000 EndTime=9000 Nodes={nodes} Users=root Flags=MAINT\n"
    request = request_of({"nodes": 1, "time": 120, "partition": "normal"})
    for nodes, expected_s in (("n2", 3900), ("n9", None)):
        known = replace(cluster(), reservations=parse_reservations(line.format(nodes=nodes)))
        assert gap_s(request, known, ["normal"], [], now=1000.0) == expected_s


@pytest.mark.parametrize(
    ("gap", "least_s", "suggested"),
    [
        (7200, 0.0, ""),
        (1800, 600.0, "slurm.time=00:30:00 fits"),
        (300, 600.0, ""),
        (None, 600.0, ""),
    ],
    ids=["it fits", "a shorter one fits", "too short to be worth it", "nothing comes"],
)
def test_what_fits_before_the_next_job_may_start_at_once(
    gap: int | None, least_s: float, suggested: str
) -> None:
    request = request_of({"nodes": 1, "time": 120, "partition": "normal"})
    found = backfilled(replace(WAITS, suggestions=()), request, gap)
    assert found.wait_s == (least_s, 1800)
    assert " ".join(found.suggestions).startswith(suggested)
    assert bool(found.suggestions) == bool(suggested)


WAITS = Schedulability(
    Outcome.WAITS, ("2 nodes are asked for and 1 have room now",), (600, 1800), "x"
)


def test_a_wait_is_told_as_a_range() -> None:
    assert WAITS.lines()[0] == "waits about 00:10:00 to 00:30:00, by x"


def test_a_longest_wait_refuses_what_is_longer_and_what_nobody_knows() -> None:
    permit(WAITS, max_wait_s=600)
    permit(Schedulability(Outcome.STARTS_NOW), max_wait_s=1)
    with pytest.raises(ClusterError, match="it would wait 00:10:00 or longer"):
        permit(WAITS, max_wait_s=599)
    unknown = Schedulability(Outcome.UNKNOWN, ("Slurm does not say what it has",))
    with pytest.raises(ClusterError, match=r"nobody can say how long .* what it has"):
        permit(unknown, max_wait_s=600)
    permit(unknown)
    with pytest.raises(UserError, match="--max-wait: expected"):
        max_wait_s("soon")


def test_force_lifts_the_impossible_and_no_wait() -> None:
    never = Schedulability(
        Outcome.IMPOSSIBLE, ("no such node",), suggestions=("slurm.partition=b",)
    )
    with pytest.raises(ClusterError, match=r"no such node\ninstead: slurm.partition=b\nSlurm"):
        permit(never)
    permit(never, force=True)
    asked: list[str] = []
    permit(never, confirm=lambda problem: not asked.append(problem))
    assert "no such node" in asked[0]
    with pytest.raises(ClusterError):
        permit(never, confirm=lambda problem: False)
    with pytest.raises(ClusterError, match="--max-wait"):
        permit(dataclasses.replace(WAITS), force=True, max_wait_s=1)
