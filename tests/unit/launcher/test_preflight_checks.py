"""Every check of the preflight, once where it fails and once where it is unknown."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from submitrain.attempts import Action
from submitrain.config import RunConfig
from submitrain.launcher.checks.finding import Finding, Level, fail, ok
from submitrain.launcher.checks.node_facts import (
    UNLIMITED,
    Gpu,
    Limits,
    Names,
    NodeFacts,
    NvLink,
    Port,
    Request,
    SharedFolder,
    SharedMemory,
    Software,
    Unknown,
    Xid,
    as_line,
    parse_answer,
)
from submitrain.launcher.checks.node_gpu import parse_gpus, parse_nvlinks, parse_xids, ports_in
from submitrain.launcher.checks.node_judge import CHECKS, GIB, MIB, Expected, judge_node, software
from submitrain.launcher.checks.node_query import Asked, skew, time_limit
from submitrain.launcher.checks.preflight import Verdict, judge, unfit_nodes
from submitrain.launcher.checks.rank_trial import (
    Pair,
    RankSeen,
    judge_compute,
    judge_pairs,
    judge_ranks,
    ring,
)
from submitrain.launcher.supervisor.nodes import NodeKeeper
from submitrain.preflight_results import in_words
from submitrain.run_folder import RunDir
from tests.tiny import tiny_config

EXPECTED = Expected(asker="node1", world_size=16, gpus_per_node=2, checkpoint_bytes=10 * GIB)
SOFTWARE = Software("3.11.7", "abc", "1234", "nvidia 550", "6.1", {"torch": "2.13.0"})
GOOD = NodeFacts(
    node="node2",
    shared=SharedFolder(
        "/runs/x", fs_type="nfs4", free_bytes=100 * GIB, free_inodes=9**9, seen=True
    ),
    shm=SharedMemory(64 * GIB, 60 * GIB),
    limits=Limits(UNLIMITED, 65536, rdma=True),
    software=SOFTWARE,
    gpus=(Gpu(0, "H100", 0, False, 16, 16), Gpu(1, "H100", 0, False, 16, 16)),
    xids=(),
    nvlinks=(NvLink(0, 0, True), NvLink(1, 0, True)),
    ports=(Port("mlx5_0/1", "ACTIVE", "400 Gb/sec"),),
    names=Names("node2", reached="node1"),
    clock=0.0,
)
SHARED, LIMITS, NAMES = GOOD.shared, GOOD.limits, GOOD.names
assert isinstance(SHARED, SharedFolder) and isinstance(NAMES, Names)
BAD: dict[str, list[tuple[dict[str, Any], Level, str]]] = {
    "node.folder": [
        ({"shared": replace(SHARED, write_error="No space left on device")}, Level.FAIL, "cannot"),
        ({"shared": replace(SHARED, read_error="No such file")}, Level.FAIL, "does not show"),
        ({"shared": replace(SHARED, seen=False)}, Level.FAIL, "node1 does not see"),
        ({"shared": replace(SHARED, seen=None)}, Level.UNKNOWN, "did not look"),
        ({"shared": Unknown("no token")}, Level.UNKNOWN, "no token"),
    ],
    "node.disk": [
        ({"shared": replace(SHARED, free_bytes=GIB)}, Level.WARN, "two checkpoints need 20.0 GiB"),
        ({"shared": replace(SHARED, free_inodes=3)}, Level.WARN, "3 free inodes"),
        ({"shared": replace(SHARED, free_bytes=None)}, Level.UNKNOWN, "statvfs"),
    ],
    "node.shm": [
        ({"shm": SharedMemory(64 * MIB, 9 * MIB)}, Level.FAIL, "64 MiB are the least"),
        ({"shm": SharedMemory(GIB, GIB, "Read-only file system")}, Level.FAIL, "Read-only"),
        ({"shm": SharedMemory(GIB, 500 * MIB)}, Level.WARN, "may run out"),
        ({"shm": Unknown("no /dev/shm")}, Level.UNKNOWN, "no /dev/shm"),
    ],
    "node.memlock": [
        ({"limits": Limits(8 * MIB, 65536, rdma=True)}, Level.FAIL, "8 MiB, and RDMA"),
        ({"limits": Unknown("odd")}, Level.UNKNOWN, "odd"),
    ],
    "node.open_files": [
        ({"limits": Limits(UNLIMITED, 256, rdma=False)}, Level.FAIL, "may open 256 files"),
        ({"limits": Unknown("odd")}, Level.UNKNOWN, "odd"),
    ],
    "node.clock": [
        ({"clock": -90.0}, Level.FAIL, "90.0 s behind node1"),
        ({"clock": 5.0}, Level.WARN, "5.0 s ahead of node1"),
        ({"clock": Unknown("nobody")}, Level.UNKNOWN, "nobody"),
    ],
    "gpu.count": [
        ({"gpus": (Gpu(0, "H100"),)}, Level.FAIL, "1 of 2 GPUs"),
        ({"gpus": Unknown("no nvidia-smi")}, Level.UNKNOWN, "no nvidia-smi"),
    ],
    "gpu.memory": [
        ({"gpus": (Gpu(0, "H100", 3),)}, Level.FAIL, "GPU 0: 3 uncorrected errors"),
        ({"gpus": (Gpu(0, "H100", 0, True),)}, Level.FAIL, "remapping a row"),
        ({"gpus": (Gpu(0, "RTX", None),)}, Level.UNKNOWN, "counts no errors"),
        ({"gpus": Unknown("no nvidia-smi")}, Level.UNKNOWN, "no nvidia-smi"),
    ],
    "gpu.xid": [
        ({"xids": (Xid(79, "0000:3b:00", "NVRM: Xid 79"),)}, Level.FAIL, "fallen off the bus"),
        ({"xids": Unknown("dmesg: not permitted")}, Level.UNKNOWN, "not permitted"),
    ],
    "gpu.links": [
        ({"nvlinks": (NvLink(0, 0, True), NvLink(0, 1, False))}, Level.FAIL, "GPU 0 link 1"),
        ({"gpus": (Gpu(0, "H100", 0, False, 4, 16),)}, Level.WARN, "x4 of x16"),
        ({"nvlinks": Unknown("no answer")}, Level.UNKNOWN, "no answer"),
    ],
    "node.fabric": [
        ({"ports": (Port("mlx5_0/1", "DOWN"),)}, Level.FAIL, "mlx5_0/1 DOWN"),
        ({"ports": Unknown("not readable")}, Level.UNKNOWN, "not readable"),
    ],
    "node.name": [
        ({"names": replace(NAMES, own_error="Name or service not known")}, Level.FAIL, "node2"),
        ({"names": Unknown("odd")}, Level.UNKNOWN, "odd"),
    ],
    "node.reach": [
        ({"names": Names("node2", missed={"node1": "timed out"})}, Level.FAIL, "none of its names"),
        ({"names": Names("node2")}, Level.UNKNOWN, "did not listen"),
        ({"names": Unknown("odd")}, Level.UNKNOWN, "odd"),
    ],
}
CASES = [(id, *case) for id, cases in BAD.items() for case in cases]


def about(id: str, findings: list[Finding]) -> Finding:
    return next(one for one in findings if one.id == id)


@pytest.mark.parametrize(("id", "change", "level", "words"), CASES)
def test_a_check_that_fails_or_is_unknown_says_so(
    id: str, change: dict[str, Any], level: Level, words: str
) -> None:
    found = about(id, judge_node(replace(GOOD, **change), EXPECTED))
    assert (found.level, words in found.evidence) == (level, True), found
    assert bool(found.remedy) == (level in (Level.FAIL, Level.WARN))


def test_a_good_node_passes_every_check() -> None:
    found = judge_node(GOOD, EXPECTED)
    assert {one.level for one in found} == {Level.OK}
    assert len(found) == len(CHECKS)


def test_every_check_has_a_case_in_which_it_complains_and_one_in_which_it_is_unknown() -> None:
    assert [one.id for one in judge_node(GOOD, EXPECTED)] == list(BAD)
    for id, cases in BAD.items():
        levels = {level for _, level, _ in cases}
        assert Level.UNKNOWN in levels and levels & {Level.FAIL, Level.WARN}, id


def test_without_gpus_asked_for_nothing_is_said_about_them() -> None:
    bare = replace(GOOD, gpus=Unknown("no nvidia-smi"), xids=Unknown(""), nvlinks=Unknown(""))
    found = judge_node(bare, replace(EXPECTED, gpus_per_node=0))
    assert {one.level for one in found if one.id.startswith("gpu.")} == {Level.OK}


def test_an_answer_survives_its_way_and_ignores_what_else_is_printed() -> None:
    answer = parse_answer(f"module load noise\n{as_line(GOOD, 12.5)}bye\n", node="node2")
    assert answer is not None
    facts, now = answer
    assert (replace(facts, clock=0.0), now) == (GOOD, 12.5)
    hidden = replace(GOOD, gpus=Unknown("no nvidia-smi"), shm=Unknown("none"))
    again = parse_answer(as_line(hidden, 1.0), node="node2")
    assert again is not None and again[0].gpus == Unknown("no nvidia-smi")
    assert again[0].shm == Unknown("none")


@pytest.mark.parametrize("text", ["", "@preflight {", "@preflight []", '@preflight {"now": "x"}'])
def test_rubbish_is_no_answer(text: str) -> None:
    assert parse_answer(text, node="node2") is None


def test_what_an_answer_lacks_is_unknown() -> None:
    answer = parse_answer('@preflight {"now": 1, "gpus": 3, "limits": {"odd": 1}}', node="node2")
    assert answer is not None
    facts = answer[0]
    assert all(isinstance(one, Unknown) for one in (facts.gpus, facts.limits, facts.shared))


def test_a_request_survives_its_way() -> None:
    request = Request("node2", "/runs/x", "token", True, ("node1", "10.0.0.1"), 4711, False)
    assert Request.parse(request.as_text()) == request


@pytest.mark.parametrize(
    ("sent", "received", "there", "ahead"),
    [(10, 12, 11, 0), (10, 12, 15, 3), (10, 12, 4, -6), (10, 12, 12, 0)],
)
def test_the_time_that_an_exchange_took_is_no_skew(
    sent: float, received: float, there: float, ahead: float
) -> None:
    assert skew(sent, received, there) == ahead


@pytest.mark.parametrize(
    ("took", "nodes", "limit_s"),
    [([], 2, 60), ([1.0], 4, 60), ([1.0], 2, 20), ([8.0, 10.0], 3, 36), ([40.0, 40.0], 2, 60)],
)
def test_a_node_has_as_long_as_the_others_took(
    took: list[float], nodes: int, limit_s: float
) -> None:
    assert time_limit(took, nodes) == limit_s


SMI = """0, NVIDIA H100 80GB HBM3, 0, No, 16, 16
1, NVIDIA H100 80GB HBM3, 2, Yes, 8, 16
2, NVIDIA A10, [N/A], [Not Supported], 16, 16
"""


def test_what_nvidia_smi_says_is_read() -> None:
    assert parse_gpus(SMI) == (
        Gpu(0, "NVIDIA H100 80GB HBM3", 0, False, 16, 16),
        Gpu(1, "NVIDIA H100 80GB HBM3", 2, True, 8, 16),
        Gpu(2, "NVIDIA A10", None, None, 16, 16),
    )
    with pytest.raises(ValueError, match="nvidia-smi says 'No devices were found'"):
        parse_gpus("No devices were found\n")


DMESG = """[    5.000000] NVRM: loading NVIDIA UNIX x86_64 Kernel Module
[ 1000.500000] NVRM: Xid (PCI:0000:3b:00): 79, pid=1234, GPU has fallen off the bus.
[90000.000000] NVRM: Xid (PCI:0000:86:00): 31, pid=77, MMU Fault
[90100.000000] NVRM: Xid (0000:86:00): 94, Contained ECC error
"""


def test_xids_of_the_last_day_are_read_from_the_kernels_log() -> None:
    found = parse_xids(DMESG, uptime_s=90200.0)
    assert [(one.code, one.device) for one in found] == [(31, "0000:86:00"), (94, "0000:86:00")]
    assert [one.code for one in parse_xids(DMESG, uptime_s=None)] == [79, 31, 94]
    assert about("gpu.xid", judge_node(replace(GOOD, xids=found[:1]), EXPECTED)).level is Level.OK


def test_nvlinks_are_read() -> None:
    text = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n"
        "GPU 1: NVIDIA H100 (UUID: GPU-2)\n\t Link 0: 26.562 GB/s\n"
    )
    assert parse_nvlinks(text) == (NvLink(0, 0, True), NvLink(0, 1, False), NvLink(1, 0, True))
    assert parse_nvlinks("") == ()


def test_ports_are_read_from_sys(tmp_path: Path) -> None:
    assert ports_in(tmp_path / "none") == ()
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    with pytest.raises(OSError, match="state"):
        ports_in(tmp_path)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert ports_in(tmp_path) == (Port("mlx5_0/1", "ACTIVE", "400 Gb/sec (4X NDR)"),)


def nodes(*versions: Software | Unknown) -> dict[str, NodeFacts]:
    return {
        f"node{number}": replace(GOOD, software=one) for number, one in enumerate(versions, start=1)
    }


OTHER = replace(SOFTWARE, packages={"torch": "2.10.0"})


def test_the_node_with_other_packages_is_named_by_the_majority() -> None:
    found = software(nodes(SOFTWARE, OTHER, SOFTWARE))
    assert [one.level for one in found.values()] == [Level.OK, Level.FAIL, Level.OK]
    assert found["node2"].evidence == "torch is 2.10.0, 2.13.0 elsewhere"


def test_of_two_nodes_the_one_is_right_that_has_what_the_launch_recorded() -> None:
    found = software(nodes(SOFTWARE, OTHER), {"torch": "2.10.0"})
    assert [one.level for one in found.values()] == [Level.FAIL, Level.OK]


def test_where_nobody_has_a_majority_all_are_warned() -> None:
    found = software(nodes(SOFTWARE, OTHER))
    assert [one.level for one in found.values()] == [Level.WARN, Level.WARN]
    assert "torch 2.10.0" in found["node2"].evidence


def test_another_driver_is_worth_a_warning_and_no_more() -> None:
    found = software(nodes(SOFTWARE, SOFTWARE, replace(SOFTWARE, driver="nvidia 535")))
    assert [one.level for one in found.values()] == [Level.OK, Level.OK, Level.WARN]


def test_versions_that_could_not_be_read_are_unknown() -> None:
    found = software(nodes(SOFTWARE, Unknown("hung"), SOFTWARE))
    assert found["node2"].level is Level.UNKNOWN
    assert [found[node].level for node in ("node1", "node3")] == [Level.OK, Level.OK]
    alone = software(nodes(SOFTWARE, Unknown("hung")))
    assert {one.level for one in alone.values()} == {Level.UNKNOWN}
    assert software(nodes(SOFTWARE))["node1"].level is Level.OK


def test_what_fails_on_all_nodes_is_nobodys_fault_unless_it_is_the_hardwares() -> None:
    low, gone = fail("node.open_files", "low", "raise"), fail("gpu.count", "1 of 8", "report")
    fine = ok("node.open_files", "65536")
    assert unfit_nodes({"a": (low,), "b": (low,)}) == {}
    assert unfit_nodes({"a": (low,), "b": (fine,)}) == {"a": "node.open_files: low"}
    assert unfit_nodes({"a": (gone,), "b": (gone,)}).keys() == {"a", "b"}
    assert unfit_nodes({"a": (low,)}) == {}


def test_silent_and_broken_nodes_are_unfit_and_unasked_ones_are_not() -> None:
    good = replace(GOOD, node="node1")
    asked = Asked(
        {"node1": good}, {"node2": "timed out"}, {"node3": "No module"}, {"node4": "late"}
    )
    found = judge(asked, EXPECTED)
    assert [one.level for one in found["node4"]] == [Level.UNKNOWN]
    verdict = Verdict("quick", found, asked.silent, took_s=2.0)
    assert set(verdict.unfit) == {"node2", "node3"}
    assert verdict.in_short()["nodes"] == {"ok": 1, "unknown": 1, "fail": 2}
    assert "node2 is unfit (node.answers: it runs no tasks: timed out)" in verdict.in_words()


def test_a_verdict_in_words() -> None:
    well = Verdict("quick", {"a": (ok("x", ""),), "b": (ok("x", ""),)}, took_s=1.25)
    assert well.in_words() == "all is well on 2 nodes, 1.2 s"
    assert in_words({"nodes": {"ok": 3, "warn": 1}, "took_s": 2}) == (
        "no node of 4 is unfit, 1 with warnings, 2.0 s"
    )


def seen(rank: int, host: str, **more: Any) -> RankSeen:
    done = {"stage": "done", "meet_s": 0.1, "join_s": 0.2, "device": "cpu"}
    return RankSeen(rank, host, **{**done, "reduce_bytes": 1, "reduce_s": 1, "matmul_s": 1, **more})


def test_ranks_that_meet_and_reduce_pass() -> None:
    tier = judge_ranks([seen(0, "a"), seen(1, "b")])
    assert not tier.isolate
    assert {one.level for found in tier.findings.values() for one in found} == {Level.OK}


def test_a_ranks_own_error_names_its_node_and_victims_are_none() -> None:
    tier = judge_ranks(
        [
            seen(0, "a", stage="join", error="Connection reset by peer", victim=True),
            seen(1, "b", stage="join", error="no such interface"),
        ]
    )
    assert not tier.isolate
    assert about("ranks.meet", tier.findings["b"]).level is Level.FAIL
    assert about("ranks.meet", tier.findings["a"]).level is Level.UNKNOWN
    assert set(unfit_nodes({node: tuple(one) for node, one in tier.findings.items()})) == {"b"}


def test_where_nobody_knows_why_pairs_are_tried() -> None:
    assert judge_ranks([seen(0, "a", stage="join"), seen(1, "b", stage="reduce")]).isolate
    assert judge_ranks([seen(0, "a", wrong=(5,)), seen(1, "b", wrong=(5,))]).isolate
    assert not judge_ranks([seen(0, "a", stage="join"), seen(1, "a", stage="join")]).isolate


def test_a_sum_that_is_wrong_on_one_node_only_speaks_against_it() -> None:
    tier = judge_ranks([seen(0, "a"), seen(1, "b", wrong=(1000,))])
    assert about("ranks.reduce", tier.findings["b"]).level is Level.FAIL
    never = judge_ranks([seen(0, "a", stage="join", reduce_s=None), seen(1, "b", stage="join")])
    assert about("ranks.reduce", never.findings["a"]).level is Level.UNKNOWN


@pytest.mark.parametrize(
    ("times", "level"),
    [
        ([1.0, 1.1, 2.5], Level.FAIL),
        ([1.0, 1.1, 1.8], Level.WARN),
        ([1.0, 1.1, 1.4], Level.OK),
        ([1.0, 1.1, None], Level.UNKNOWN),
    ],
)
def test_a_rank_is_slow_by_its_peers(times: list[float | None], level: Level) -> None:
    ranks = [seen(rank, f"n{rank}", matmul_s=took) for rank, took in enumerate(times)]
    assert judge_compute(ranks)["n2"].level is level


@pytest.mark.parametrize("count", range(2, 10))
def test_in_a_ring_everybody_is_in_two_pairs_and_in_one_at_a_time(count: int) -> None:
    names = [f"n{index}" for index in range(count)]
    rounds = ring(names)
    for pairs in rounds:
        inside = [name for pair in pairs for name in pair]
        assert len(inside) == len(set(inside))
    every = [name for pairs in rounds for pair in pairs for name in pair]
    assert all(every.count(name) == (1 if count == 2 else 2) for name in names)
    assert ring(["alone"]) == []


def pairs_of(count: int, works: Callable[[str, str], bool]) -> list[Pair]:
    names = [f"n{index}" for index in range(count)]
    return [
        Pair((a, b), "" if works(a, b) else "broken") for pairs in ring(names) for a, b in pairs
    ]


@pytest.mark.parametrize("count", [3, 4, 5, 8])
def test_pairs_name_the_node_that_works_with_nobody(count: int) -> None:
    found = judge_pairs(pairs_of(count, lambda a, b: "n1" not in (a, b)))
    bad = [node for node, one in found.items() if one.level is Level.FAIL]
    assert bad == ["n1"]


def test_pairs_that_all_fail_or_were_not_run_name_nobody() -> None:
    for found in (
        judge_pairs(pairs_of(2, lambda a, b: False)),
        judge_pairs(pairs_of(4, lambda a, b: False)),
        judge_pairs([Pair(("a", "b"), None), Pair(("b", "c"), None)]),
    ):
        assert {one.level for one in found.values()} == {Level.UNKNOWN}


class TwoNodes:
    """A job on Slurm with two nodes; the supervisor moves it about."""

    job_id = "7"
    granted = 2

    def __init__(self) -> None:
        self.spawner = SimpleNamespace(nodes=("n1", "n2"))

    def living_nodes(self) -> tuple[str, ...]:
        return ("n1", "n2")

    def pool(self) -> frozenset[str]:
        return frozenset({"n1", "n2", "n3"})

    def use(self, nodes: tuple[str, ...]) -> None:
        self.spawner.nodes = nodes


@pytest.mark.parametrize(
    ("resilience", "requeue", "expected"),
    [
        ({"elastic": True}, True, (None, ("n1",))),
        ({"elastic": False}, True, (Action.REQUEUE, ("n1", "n2"))),
        ({"elastic": False, "resubmit": False}, False, (None, ("n1", "n2"))),
    ],
    ids=["fewer nodes go on", "back into the queue", "nothing would bring it back"],
)
def test_what_follows_for_the_nodes(
    tmp_path: Path, resilience: dict[str, Any], requeue: bool, expected: tuple[Any, Any]
) -> None:
    slurm = {"nodes": 2, "requeue": requeue}
    config = tiny_config(tmp_path, slurm=slurm, resilience=resilience)
    allocation = TwoNodes()
    keeper = NodeKeeper(RunDir(tmp_path), RunConfig.model_validate(config), allocation)  # type: ignore[arg-type]
    bad = Verdict("quick", {"n1": (ok("x", ""),), "n2": (fail("x", "full", "empty it"),)})
    decision = keeper.weigh(bad, 1, ())
    assert (decision and decision.action, allocation.spawner.nodes) == expected
    assert decision is None or keeper.exclude == ("n2",)
