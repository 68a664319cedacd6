"""Every check of the preflight, once where it fails and once where it is unknown."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from submitrain.attempts import Action
from submitrain.config import RunConfig
from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.checks import node_folder
from submitrain.launcher.checks.finding import Check, Finding, Level, fail, ok, run_checks, unknown
from submitrain.launcher.checks.node_folder import (
    GIB,
    judge_disk,
    seen_from_the_first_node,
    shared_folder,
    token_file,
)
from submitrain.launcher.checks.node_gpu import (
    Gpu,
    gpu_checks,
    gpu_count,
    gpu_links,
    gpu_memory,
    gpu_xid,
    parse_gpus,
    parse_nvlinks,
    parse_xids,
)
from submitrain.launcher.checks.node_query import NoAnswer, ask_here, excuse_silence, time_limit
from submitrain.launcher.checks.node_request import NodeAnswer, NodeRequest
from submitrain.launcher.checks.node_software import compare_versions
from submitrain.launcher.checks.node_system import (
    MIB,
    Port,
    clock,
    clock_skew_s,
    fabric,
    locked_memory,
    open_files,
    reach,
    read_name,
    read_ports,
    read_shared_memory,
    shared_memory,
)
from submitrain.launcher.checks.node_task import check_node
from submitrain.launcher.checks.preflight import PreflightResult, findings_of, unfit_nodes
from submitrain.launcher.checks.rank_trial import (
    Pair,
    judge_compute,
    judge_pairs,
    judge_ranks,
    ring,
)
from submitrain.launcher.supervisor.nodes import NodeSelector
from submitrain.preflight_results import RankReport, preflight_text
from submitrain.run_folder import RunDir
from tests.tiny import tiny_config

NO_LIMIT = float("inf")
NEEDS = NodeRequest(
    node="node2",
    asker="node1",
    folder="/runs/x",
    token="token",
    world_size=16,
    gpus_per_node=2,
    checkpoint_bytes=10 * GIB,
)
GPUS = (Gpu(0, "H100", 0, False, 16, 16), Gpu(1, "H100", 0, False, 16, 16))
LINKS = {"GPU 0 link 0": True, "GPU 1 link 0": True}
FELL_OFF = (79, "NVRM: Xid 79")
UP, DOWN = Port("mlx5_0/1", "ACTIVE", rate="400 Gb/sec"), Port("mlx5_0/1", "DOWN")
CASES: list[tuple[Finding, str, Level, str]] = [
    (judge_disk(NEEDS, 100 * GIB, 9**9), "node.disk", Level.OK, "100.0 GiB free"),
    (judge_disk(NEEDS, GIB, 9**9), "node.disk", Level.WARN, "two checkpoints need 20.0 GiB"),
    (judge_disk(NEEDS, 100 * GIB, 3), "node.disk", Level.WARN, "3 free inodes"),
    (shared_memory(64 * GIB, 60 * GIB), "node.shm", Level.OK, "60.00 of 64.00"),
    (shared_memory(64 * MIB, 9 * MIB), "node.shm", Level.FAIL, "64 MiB are the least"),
    (shared_memory(GIB, GIB, "Read-only"), "node.shm", Level.FAIL, "Read-only"),
    (shared_memory(GIB, 500 * MIB), "node.shm", Level.WARN, "may run out"),
    (locked_memory(NO_LIMIT, rdma=True), "node.memlock", Level.OK, "unlimited"),
    (locked_memory(8 * MIB, rdma=False), "node.memlock", Level.OK, "no RDMA device"),
    (locked_memory(8 * MIB, rdma=True), "node.memlock", Level.FAIL, "8 MiB, and RDMA"),
    (open_files(65536, NEEDS), "node.open_files", Level.OK, "65536"),
    (open_files(256, NEEDS), "node.open_files", Level.FAIL, "may open 256 files"),
    (clock(0.0, "node1"), "node.clock", Level.OK, "within 2 s of node1"),
    (clock(-90.0, "node1"), "node.clock", Level.FAIL, "90.0 s behind node1"),
    (clock(5.0, "node1"), "node.clock", Level.WARN, "5.0 s ahead of node1"),
    (gpu_count(GPUS, 2), "gpu.count", Level.OK, "2 of 2 GPUs: H100"),
    (gpu_count(GPUS[:1], 2), "gpu.count", Level.FAIL, "1 of 2 GPUs"),
    (gpu_count((), 2), "gpu.count", Level.FAIL, "0 of 2 GPUs"),
    (gpu_memory(GPUS), "gpu.memory", Level.OK, "no uncorrected"),
    (gpu_memory([Gpu(0, "H", 3)]), "gpu.memory", Level.FAIL, "GPU 0: 3 uncorrected errors"),
    (gpu_memory([Gpu(0, "H", 0, True)]), "gpu.memory", Level.FAIL, "remapping a row"),
    (gpu_memory([Gpu(0, "RTX", None)]), "gpu.memory", Level.UNKNOWN, "counts no errors"),
    (gpu_xid(()), "gpu.xid", Level.OK, "0 of programs"),
    (gpu_xid([FELL_OFF]), "gpu.xid", Level.FAIL, "fallen off the bus"),
    (gpu_links(GPUS, LINKS), "gpu.links", Level.OK, "2 NVLinks active"),
    (gpu_links(GPUS, {}), "gpu.links", Level.OK, "no NVLink"),
    (gpu_links(GPUS, {"a": True, "GPU 0 link 1": False}), "gpu.links", Level.FAIL, "link 1"),
    (gpu_links([Gpu(0, "H", 0, False, 4, 16)], {}), "gpu.links", Level.WARN, "x4 of x16"),
    (fabric([UP, DOWN]), "node.fabric", Level.OK, "1 of 2 ports are up, 400 Gb/sec"),
    (fabric(()), "node.fabric", Level.OK, "no InfiniBand"),
    (fabric([DOWN]), "node.fabric", Level.FAIL, "mlx5_0/1 DOWN"),
    (reach(NEEDS, "node1", {}), "node.reach", Level.OK, "by node1"),
    (reach(NEEDS, "10.0.0.1", {"node1": "x"}), "node.reach", Level.OK, "not by node1: x"),
    (reach(NEEDS, "", {"node1": "timed out"}), "node.reach", Level.FAIL, "none of its names"),
    (reach(NEEDS, "", {}), "node.reach", Level.UNKNOWN, "did not listen"),
]


@pytest.mark.parametrize(("found", "id", "level", "words"), CASES)
def test_a_check_says_what_is_wrong(found: Finding, id: str, level: Level, words: str) -> None:
    assert (found.id, found.level, words in found.evidence) == (id, level, True), found
    assert bool(found.remedy) == (level in (Level.FAIL, Level.WARN))


def about(id: str, findings: Iterable[Finding]) -> Finding:
    return next(one for one in findings if one.id == id)


def test_the_folder_is_written_read_and_seen_from_the_first_node(tmp_path: Path) -> None:
    request = replace(NEEDS, folder=str(tmp_path))
    assert shared_folder(replace(request, written=False)).level is Level.UNKNOWN
    token_file(tmp_path, "").write_text("token\n")
    here = shared_folder(request)
    assert (here.level, "flushed in" in here.evidence) == (Level.OK, True)
    seen = seen_from_the_first_node(here, request)
    assert seen.evidence.endswith("seen both ways")
    assert seen_from_the_first_node(ok("node.shm", "x"), request) == ok("node.shm", "x")


def test_a_folder_that_the_nodes_do_not_share_fails_on_either_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(node_folder, "VISIBLE_S", 0.2)
    request = replace(NEEDS, folder=str(tmp_path))
    alone = shared_folder(request)
    assert (alone.level, "does not show what node1 wrote" in alone.evidence) == (Level.FAIL, True)
    other = replace(request, node="node3")
    unseen = seen_from_the_first_node(ok("node.folder", str(tmp_path)), other)
    assert (unseen.level, "node1 does not see" in unseen.evidence) == (Level.FAIL, True)
    gone = shared_folder(replace(request, folder=str(tmp_path / "gone")))
    assert (gone.level, "cannot write to" in gone.evidence) == (Level.FAIL, True)


def test_a_folder_that_hangs_fails_and_its_size_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr(node_folder, "FOLDER_S", 0.2)
    for name in ("shared_folder", "read_disk"):
        monkeypatch.setattr(node_folder, name, lambda request: release.wait(60))
    found = run_checks(node_folder.folder_checks(replace(NEEDS, folder=str(tmp_path))))
    release.set()
    assert [(one.id, str(one.level)) for one in found] == [
        ("node.folder", "fail"),
        ("node.disk", "unknown"),
    ]
    assert "no answer within 0.2 s" in found[0].evidence


def test_a_node_answers_every_check_and_the_answer_survives_its_way(tmp_path: Path) -> None:
    token_file(tmp_path, "").write_text("token\n")
    answer = check_node(replace(NEEDS, folder=str(tmp_path)))
    ids = (
        "node.python node.folder node.disk node.shm node.memlock node.open_files node.fabric "
        "node.name node.reach gpu.count gpu.memory gpu.xid gpu.links"
    )
    assert [one.id for one in answer.findings] == ids.split()
    assert {"python", "our code", "kernel", "packages/submitit"} <= set(answer.versions)
    noisy = f"module load noise\n{answer.as_line()}bye\n"
    assert NodeAnswer.parse(noisy) == answer


def test_this_machine_alone_is_checked_without_a_task(tmp_path: Path) -> None:
    here = replace(NEEDS, asker="here", folder=str(tmp_path), gpus_per_node=0, versions=False)
    found = findings_of(ask_here(here))["here"]
    assert about("node.folder", found).evidence.endswith("seen both ways")
    assert about("node.reach", found).level is Level.OK, "by loopback, whatever its names are"
    assert about("node.clock", found).evidence == "within 2 s of here"
    assert about("node.software", found).evidence == "no other node to compare with"


def test_a_check_whose_facts_cannot_be_had_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = run_checks(gpu_checks(NEEDS))
    assert [(one.id, str(one.level), one.evidence) for one in found] == [
        (id, "unknown", "nvidia-smi is not there")
        for id in ("gpu.count", "gpu.memory", "gpu.xid", "gpu.links")
    ]


def test_nvidia_smi_is_asked_once_for_all_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text(
        f"#!/bin/sh\necho $1 >> {tmp_path}/asked\n[ $1 = nvlink ] || echo 0, H100, 0, No, 8, 16\n"
    )
    smi.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    found = {one.id: one.level for one in run_checks(gpu_checks(NEEDS))}
    assert (found["gpu.count"], found["gpu.links"]) == (Level.FAIL, Level.WARN)
    asked = (tmp_path / "asked").read_text().splitlines()
    assert len([line for line in asked if line.startswith("--query-gpu")]) == 1


def test_without_gpus_asked_for_nothing_is_said_about_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    found = run_checks(gpu_checks(replace(NEEDS, gpus_per_node=0)))
    assert [one.level for one in found] == [Level.OK] * 4


def test_this_hosts_own_name_and_memory_are_looked_at(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert read_shared_memory(tmp_path).level is not Level.UNKNOWN
    [none] = run_checks([Check("node.shm", lambda: read_shared_memory(tmp_path / "none"), 60)])
    assert (none.level, none.evidence) == (Level.UNKNOWN, f"{tmp_path}/none is not there")
    monkeypatch.setattr("socket.gethostname", lambda: "no-such-host.invalid")
    assert "no-such-host.invalid does not resolve" in read_name().evidence


def test_a_nodes_task_needs_the_standard_library_only() -> None:
    code = (
        "import sys; import submitrain.launcher.checks.node_task; "
        "print(*{name.partition('.')[0] for name in sys.modules} - set(sys.stdlib_module_names))"
    )
    command = [sys.executable, "-S", "-c", code]
    environ = {"PYTHONPATH": str(IMPORT_ROOT)}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) <= {"__main__", "submitrain"}


@pytest.mark.parametrize("text", ["", "@preflight {", "@preflight []", '@preflight {"now": "x"}'])
def test_rubbish_is_no_answer(text: str) -> None:
    assert NodeAnswer.parse(text) is None


def test_a_request_survives_its_way() -> None:
    request = replace(NEEDS, hosts=("node1", "10.0.0.1"), port=4711, versions=False)
    assert NodeRequest.parse(request.as_text()) == request


@pytest.mark.parametrize(
    ("sent", "received", "there", "ahead"),
    [(10, 12, 11, 0), (10, 12, 15, 3), (10, 12, 4, -6), (10, 12, 12, 0)],
)
def test_the_time_that_an_exchange_took_is_no_skew(
    sent: float, received: float, there: float, ahead: float
) -> None:
    assert clock_skew_s(sent, received, there) == ahead


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
    assert [code for code, _ in found] == [31, 94]
    assert [code for code, _ in parse_xids(DMESG, uptime_s=None)] == [79, 31, 94]
    assert gpu_xid(found[:1]).level is Level.OK


def test_nvlinks_are_read() -> None:
    text = (
        "GPU 0: NVIDIA H100 (UUID: GPU-1)\n\t Link 0: 26.562 GB/s\n\t Link 1: <inactive>\n"
        "GPU 1: NVIDIA H100 (UUID: GPU-2)\n\t Link 0: 26.562 GB/s\n"
    )
    expected = {"GPU 0 link 0": True, "GPU 0 link 1": False, "GPU 1 link 0": True}
    assert parse_nvlinks(text) == expected
    assert parse_nvlinks("") == {}


def test_ports_are_read_from_sys(tmp_path: Path) -> None:
    assert read_ports(tmp_path / "none") == []
    port = tmp_path / "mlx5_0" / "ports" / "1"
    port.mkdir(parents=True)
    with pytest.raises(OSError, match="state"):
        read_ports(tmp_path)
    (port / "state").write_text("4: ACTIVE\n")
    (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    assert read_ports(tmp_path) == [Port("mlx5_0/1", "ACTIVE", rate="400 Gb/sec (4X NDR)")]


TOLD = {"python": "3.11.7", "our code": "abc", "driver": "nvidia 550", "packages/torch": "2.13.0"}
OTHER = {**TOLD, "packages/torch": "2.10.0"}


def nodes(*versions: Mapping[str, str]) -> dict[str, Mapping[str, str]]:
    return {f"node{number}": one for number, one in enumerate(versions, start=1)}


def test_the_node_with_other_packages_is_named_by_the_majority() -> None:
    found = compare_versions(nodes(TOLD, OTHER, TOLD))
    assert [one.level for one in found.values()] == [Level.OK, Level.FAIL, Level.OK]
    assert found["node2"].evidence == "torch is 2.10.0, 2.13.0 elsewhere"


def test_of_two_nodes_the_one_is_right_that_has_what_the_launch_recorded() -> None:
    found = compare_versions(nodes(TOLD, OTHER), {"torch": "2.10.0"})
    assert [one.level for one in found.values()] == [Level.FAIL, Level.OK]


def test_where_nobody_has_a_majority_all_are_warned() -> None:
    found = compare_versions(nodes(TOLD, OTHER))
    assert [one.level for one in found.values()] == [Level.WARN, Level.WARN]
    assert "torch 2.10.0" in found["node2"].evidence


def test_another_driver_is_worth_a_warning_and_no_more() -> None:
    found = compare_versions(nodes(TOLD, TOLD, {**TOLD, "driver": "nvidia 535"}))
    assert [one.level for one in found.values()] == [Level.OK, Level.OK, Level.WARN]


def test_versions_that_could_not_be_read_are_unknown() -> None:
    found = compare_versions(nodes(TOLD, {}, TOLD))
    assert found["node2"].level is Level.UNKNOWN
    assert [found[node].level for node in ("node1", "node3")] == [Level.OK, Level.OK]
    alone = compare_versions(nodes(TOLD, {}))
    assert {one.level for one in alone.values()} == {Level.UNKNOWN}
    assert compare_versions(nodes(TOLD))["node1"].level is Level.OK


def test_why_a_node_has_no_versions_is_kept() -> None:
    late = unknown("node.software", "no answer within 18.0 s")
    answers = {
        "n1": NodeAnswer((), 0.0, TOLD),
        "n2": NodeAnswer((late,), 0.0),
        "n3": NodeAnswer((), 0.0, TOLD),
    }
    assert findings_of(answers)["n2"] == (late,)


def test_what_fails_on_all_nodes_is_nobodys_fault_unless_it_is_the_hardwares() -> None:
    low, gone = fail("node.open_files", "low", "raise"), fail("gpu.count", "1 of 8", "report")
    fine = ok("node.open_files", "65536")
    assert unfit_nodes({"a": (low,), "b": (low,)}) == {}
    assert unfit_nodes({"a": (low,), "b": (fine,)}) == {"a": "node.open_files: low"}
    assert unfit_nodes({"a": (gone,), "b": (gone,)}).keys() == {"a", "b"}
    assert unfit_nodes({"a": (low,)}) == {}


def test_silent_and_broken_nodes_are_unfit_and_unasked_ones_are_not() -> None:
    good = NodeAnswer((ok("node.python", "runs"), ok("node.folder", "fine")), 0.0, TOLD)
    answers = {
        "node1": good,
        "node2": NoAnswer(silent="timed out"),
        "node3": NoAnswer(broken="No module"),
        "node4": NoAnswer(unasked="late"),
    }
    found = findings_of(answers)
    assert [one.level for one in found["node4"]] == [Level.UNKNOWN]
    result = PreflightResult("quick", found, {"node2": "timed out"}, took_s=2.0)
    assert set(result.unfit) == {"node2", "node3"}
    assert result.in_short()["nodes"] == {"ok": 1, "unknown": 1, "fail": 2}
    assert "node2 is unfit (node.answers: it runs no tasks: timed out)" in preflight_text(
        result.as_json()
    )


def test_silence_speaks_against_nobody_where_the_first_node_is_silent_too() -> None:
    good, silent = NodeAnswer((), 0.0), NoAnswer(silent="timed out")
    assert excuse_silence({"n1": good, "n2": silent}, "n1")["n2"] == silent
    for answers in ({"n1": silent, "n2": good}, {"n2": silent, "n3": silent}):
        excused = excuse_silence(answers, "n1").values()
        assert not any(isinstance(one, NoAnswer) and one.silent for one in excused)
        assert NoAnswer(unasked="timed out, nor did n1") in excused


def test_a_result_in_words() -> None:
    well = PreflightResult("quick", {"a": (ok("x", ""),), "b": (ok("x", ""),)}, took_s=1.25)
    assert preflight_text(well.as_json()) == "all is well on 2 nodes, 1.2 s"
    assert preflight_text({"nodes": {"ok": 3, "warn": 1}, "took_s": 2}) == (
        "no node of 4 is unfit, 1 with warnings, 2.0 s"
    )


def seen(rank: int, host: str, **more: Any) -> RankReport:
    done = {"stage": "done", "meet_s": 0.1, "join_s": 0.2, "device": "cpu"}
    return RankReport(
        rank, host, **{**done, "reduce_bytes": 1, "reduce_s": 1, "matmul_s": 1, **more}
    )


def test_ranks_that_meet_and_reduce_pass() -> None:
    findings, isolate = judge_ranks([seen(0, "a"), seen(1, "b")])
    assert not isolate
    assert {one.level for found in findings.values() for one in found} == {Level.OK}


def test_a_ranks_own_error_names_its_node_and_victims_are_none() -> None:
    findings, isolate = judge_ranks(
        [
            seen(0, "a", stage="join", error="Connection reset by peer", victim=True),
            seen(1, "b", stage="join", error="no such interface"),
        ]
    )
    assert not isolate
    assert about("ranks.meet", findings["b"]).level is Level.FAIL
    assert about("ranks.meet", findings["a"]).level is Level.UNKNOWN
    assert set(unfit_nodes(findings)) == {"b"}


def test_where_nobody_knows_why_pairs_are_tried() -> None:
    assert judge_ranks([seen(0, "a", stage="join"), seen(1, "b", stage="reduce")])[1]
    assert judge_ranks([seen(0, "a", wrong=[5]), seen(1, "b", wrong=[5])])[1]
    assert not judge_ranks([seen(0, "a", stage="join"), seen(1, "a", stage="join")])[1]


def test_a_sum_that_is_wrong_on_one_node_only_speaks_against_it() -> None:
    findings, _ = judge_ranks([seen(0, "a"), seen(1, "b", wrong=[1000])])
    assert about("ranks.reduce", findings["b"]).level is Level.FAIL
    never, _ = judge_ranks([seen(0, "a", stage="join", reduce_s=None), seen(1, "b", stage="join")])
    assert about("ranks.reduce", never["a"]).level is Level.UNKNOWN


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
    selector = NodeSelector(RunDir(tmp_path), RunConfig.model_validate(config), allocation)  # type: ignore[arg-type]
    bad = PreflightResult("quick", {"n1": (ok("x", ""),), "n2": (fail("x", "full", "empty it"),)})
    decision = selector.weigh(bad, 1, ())
    assert (decision and decision.action, allocation.spawner.nodes) == expected
    assert decision is None or decision.exclude == ("n2",)


def test_a_ranks_report_is_read_back_and_one_that_is_missing_or_torn_is_at_no_stage(
    tmp_path: Path,
) -> None:
    report = seen(3, "a", stage="join", error="refused")
    report.write(tmp_path)
    assert RankReport.read(tmp_path, 3, "a") == report
    (tmp_path / "rank00004.json").write_text('{"rank": 4, "ho')
    for rank in (4, 5):
        assert RankReport.read(tmp_path, rank, "b") == RankReport(rank, "b", stage="")
