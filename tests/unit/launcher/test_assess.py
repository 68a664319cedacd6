"""Each check of ``assess`` tells what is wrong, and what it does not know."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.document import dump_yaml
from submitrain.launcher.checks.assess import check_config
from submitrain.launcher.checks.finding import Finding, Level, ok, worst
from submitrain.launcher.checks.folders import (
    Folder,
    FolderFacts,
    Mount,
    judge_folder,
    mount_of,
    parse_mounts,
    read_folder,
)
from submitrain.launcher.checks.host import (
    Endpoint,
    check_modules,
    connect,
    endpoints,
    judge_clock,
    judge_containers,
    judge_python,
    judge_rdma,
)
from submitrain.launcher.checks.node_system import Port, read_ports
from submitrain.launcher.checks.render import findings_page
from submitrain.launcher.checks.schedulability import Outcome, Schedulability
from submitrain.launcher.checks.slurm import (
    SlurmReading,
    judge_accounts,
    judge_controller,
    judge_gpus,
    judge_partition,
    judge_partitions,
    judge_schedulability,
    judge_settings,
    kind_of,
)
from submitrain.launcher.cli.main import main
from submitrain.slurm.client import Answer
from submitrain.slurm.cluster import (
    Association,
    ClusterFacts,
    Limits,
    parse_nodes,
    parse_partitions,
)
from tests.tiny import tiny_config

NODES = parse_nodes(
    "NodeName=n1 State=IDLE CPUTot=8 RealMemory=100 Gres=gpu:h100:8 Partitions=gpu\n"
    "NodeName=n2 State=MIXED CPUTot=8 RealMemory=100 Gres=gpu:h100:8 Partitions=gpu "
    "AllocTRES=cpu=2,gres/gpu=3\n"
    "NodeName=n3 State=IDLE+DRAIN CPUTot=8 RealMemory=100 Gres=gpu:h100:8 Partitions=gpu\n"
    "NodeName=n4 State=DOWN* CPUTot=8 RealMemory=100 Gres=gpu:h100:8 Partitions=gpu\n"
)
PARTITIONS = parse_partitions(
    "PartitionName=gpu Default=YES State=UP MaxTime=1-00:00:00 Nodes=n[1-4]\n"
    "PartitionName=shut Default=NO State=DOWN MaxTime=UNLIMITED Nodes=n1\n"
    "PartitionName=good Default=NO State=UP MaxTime=UNLIMITED Nodes=n[1-2]\n"
    "PartitionName=odd Default=NO State=UP MaxTime=UNLIMITED Nodes=n[1-9]\n"
)
GOOD = {
    "PreemptType": "preempt/qos",
    "PreemptMode": "REQUEUE",
    "SlurmctldParameters": "enable_configless,preempt_send_user_signal",
    "JobRequeue": "1",
    "KillWait": "30 sec",
    "AccountingStorageType": "accounting_storage/slurmdbd",
    "AccountingStorageEnforce": "associations,limits,qos",
    "EnforcePartLimits": "ALL",
    "GresTypes": "gpu",
}
MINE = Association("research", "", frozenset(["normal"]), "normal", True, Limits("you"))
FACTS = ClusterFacts(NODES, PARTITIONS, GOOD, user="me", associations=(MINE,))


def with_settings(**settings: str | None) -> ClusterFacts:
    changed = {name: value for name, value in {**GOOD, **settings}.items() if value is not None}
    return replace(FACTS, settings=changed)


SETTINGS: dict[str, Any] = {
    "slurm.preemption": ({"SlurmctldParameters": ""}, {"PreemptType": None}),
    "slurm.requeue": ({"JobRequeue": "0"}, {"JobRequeue": None}),
    "slurm.kill_wait": ({"KillWait": "5 sec"}, {"KillWait": None}),
    "slurm.accounting": (
        {"AccountingStorageType": "accounting_storage/none"},
        {"AccountingStorageType": None},
    ),
    "slurm.limits": ({"EnforcePartLimits": "NO"}, {"EnforcePartLimits": None}),
}


def setting(id: str, facts: ClusterFacts) -> Finding:
    return next(one for one in judge_settings(facts) if one.id == id)


@pytest.mark.parametrize("id", SETTINGS)
def test_a_setting_is_ok_warned_of_or_unknown(id: str) -> None:
    bad, untold = SETTINGS[id]
    assert setting(id, FACTS).level is Level.OK
    warned = setting(id, with_settings(**bad))
    assert (warned.level, bool(warned.remedy)) == (Level.WARN, True)
    assert setting(id, with_settings(**untold)).level is Level.UNKNOWN


def test_a_database_that_is_silent_is_warned_of_and_accounts_are_unknown() -> None:
    silent = replace(FACTS, associations=None)
    assert setting("slurm.accounting", silent).level is Level.WARN
    assert judge_accounts(silent).level is Level.UNKNOWN


def test_a_user_without_account_fails_where_accounts_are_enforced() -> None:
    assert judge_accounts(FACTS).evidence == "user me: research (default): QOS normal"
    nobody = replace(FACTS, associations=())
    assert judge_accounts(nobody).level is Level.FAIL
    lax = replace(with_settings(AccountingStorageEnforce="none"), associations=())
    assert judge_accounts(lax).level is Level.WARN


@pytest.mark.parametrize(
    ("ping", "facts", "level"),
    [
        (Answer(0, "Slurmctld(primary) at login is UP\n", ""), FACTS, Level.OK),
        (Answer(0, "Slurmctld(primary) at login is UP\n", ""), None, Level.UNKNOWN),
        (Answer(1, "Slurmctld(primary) at login is DOWN\n", ""), None, Level.FAIL),
        (Answer(None, "", "scontrol did not answer within 3 s"), None, Level.FAIL),
        (Answer(None, "", "scontrol cannot be run: no such file"), None, Level.FAIL),
        (Answer(1, "", "scontrol: fatal: what is this"), None, Level.UNKNOWN),
    ],
)
def test_the_controller(ping: Answer, facts: ClusterFacts | None, level: Level) -> None:
    assert judge_controller(SlurmReading(ping, facts)).level is level


def test_a_machine_without_slurm_is_fine() -> None:
    assert judge_controller(None).level is Level.OK


def test_nodes_are_counted_by_what_they_truly_are() -> None:
    kinds = {name: kind_of(node) for name, node in NODES.items()}
    assert kinds == {"n1": "idle", "n2": "mixed", "n3": "drained", "n4": "down"}
    [gpu] = [one for one in judge_partitions(FACTS, reasons={"n3": "bad fan"}) if "gpu" in one.id]
    assert gpu.level is Level.WARN
    assert gpu.evidence == (
        "up, default; 4 nodes: 1 idle, 1 mixed, 1 drained, 1 down; time limit 1-00:00:00; GPUs "
        "free: 13 of 32 h100; drained: n3 (bad fan); down: n4"
    )


@pytest.mark.parametrize(
    ("name", "needed", "level"),
    [
        ("good", True, Level.OK),
        ("gpu", True, Level.WARN),
        ("shut", False, Level.WARN),
        ("shut", True, Level.FAIL),
        ("odd", True, Level.UNKNOWN),
    ],
)
def test_a_partition(name: str, needed: bool, level: Level) -> None:
    found = judge_partition(PARTITIONS[name], FACTS, needed=needed, reasons={})
    assert found.level is level


def test_a_partition_without_a_node_that_is_up_fails_and_one_that_is_not_there_too() -> None:
    out = {name: replace(node, state="DOWN") for name, node in NODES.items()}
    dead = judge_partition(PARTITIONS["good"], replace(FACTS, nodes=out), needed=True, reasons={})
    assert dead.level is Level.FAIL
    found = {one.id: one for one in judge_partitions(FACTS, needed=["nowhere"])}
    assert found["slurm.partition.nowhere"].level is Level.FAIL
    assert "good, gpu" in found["slurm.partition.nowhere"].remedy


def test_gpus_by_type() -> None:
    assert judge_gpus(FACTS).evidence == "GPUs free: 13 of 32 h100"
    bare = {name: replace(node, gpus={}, free_gpus=0) for name, node in NODES.items()}
    assert judge_gpus(replace(FACTS, nodes=bare)).level is Level.WARN
    told = replace(with_settings(GresTypes=None), nodes=bare)
    assert judge_gpus(told).level is Level.UNKNOWN


RUNS = Folder("folder.runs", Path("/shared/runs"), "runs_dir")
FINE: Mapping[str, Any] = {
    "path": "/shared/runs",
    "exists": True,
    "free_bytes": 10 << 40,
    "total_bytes": 20 << 40,
    "free_inodes": 10**9,
    "total_inodes": 10**9,
    "fsync_s": 0.01,
}


def judged(kind: str = "nfs4", *, on_nodes: bool = True, **changes: Any) -> Finding:
    facts = {name: value for name, value in {**FINE, **changes}.items() if value is not None}
    found = FolderFacts("/shared/runs", Mount("/shared", kind, "server:/x"), facts)
    return judge_folder(RUNS, found, on_nodes=on_nodes)


@pytest.mark.parametrize(
    ("found", "level", "words"),
    [
        (judged(), Level.OK, ""),
        (judged("ext4", on_nodes=False), Level.OK, ""),
        (judged("ext4"), Level.WARN, "ext4 is local to one machine"),
        (judged("hellofs"), Level.UNKNOWN, "shows whether nodes share it"),
        (judged(free_bytes=5 << 30), Level.WARN, "little space"),
        (judged(free_bytes=1), Level.FAIL, "no checkpoint fits"),
        (judged(free_inodes=0), Level.FAIL, "no checkpoint fits"),
        (judged(free_inodes=9), Level.WARN, "few inodes"),
        (judged(free_inodes=0, total_inodes=0), Level.OK, ""),
        (judged(fsync_s=3.0), Level.WARN, "fsync is slow"),
        (judged(fsync_s=None), Level.UNKNOWN, "by hand"),
        (judged(fsync_s=None, error="No space left", errno=28), Level.FAIL, "quota is full"),
        (judged(fsync_s=None, error="Permission denied", errno=13), Level.FAIL, "write access"),
    ],
)
def test_a_folder(found: Finding, level: Level, words: str) -> None:
    assert found.level is level
    assert words in found.remedy


def test_the_innermost_and_newest_mount_holds_a_path() -> None:
    mounts = parse_mounts(
        "rootfs / ext4 rw 0 0\nserver:/a /my\\040data nfs4 rw 0 0\nx /my\\040data lustre rw 0 0\n"
    )
    found = mount_of("/my data/runs", mounts)
    assert found == Mount("/my data", "lustre", "x")
    assert mount_of("/my data2", mounts) == Mount("/", "ext4", "rootfs")


def test_a_real_folder_is_written_to_and_left_as_it_was(tmp_path: Path) -> None:
    found = read_folder(tmp_path / "runs" / "deep", limit_s=30)
    assert (found.path, found.facts["exists"], found.hung_s) == (str(tmp_path), False, None)
    assert found.facts["fsync_s"] > 0
    assert not list(tmp_path.iterdir())


def test_containers_that_srun_can_start() -> None:
    plain, pyxis = Answer(0, "Usage: srun", ""), Answer(0, "--container-image=[USER@]", "")
    silent = Answer(None, "", "srun did not answer within 3 s")
    assert judge_containers(pyxis, [], needed=True).level is Level.OK
    assert judge_containers(plain, [], needed=False).level is Level.OK
    assert judge_containers(plain, ["apptainer"], needed=True).level is Level.OK
    assert judge_containers(plain, ["podman"], needed=True).level is Level.WARN
    assert judge_containers(plain, [], needed=True).level is Level.FAIL
    assert judge_containers(silent, [], needed=True).level is Level.UNKNOWN


def test_rdma_ports_are_read_from_the_kernels_files(tmp_path: Path) -> None:
    none = read_ports(tmp_path / "none")
    assert judge_rdma(none, on_nodes=True).level is Level.UNKNOWN
    assert judge_rdma(none, on_nodes=False).level is Level.OK
    for number, state in (("1", "1: DOWN"), ("2", "4: ACTIVE")):
        port = tmp_path / "mlx5_0/ports" / number
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
        (port / "link_layer").write_text("InfiniBand\n")
        (port / "rate").write_text("400 Gb/sec (4X NDR)\n")
    ports = read_ports(tmp_path)
    assert ports[1] == Port("mlx5_0/2", "ACTIVE", "InfiniBand", "400 Gb/sec (4X NDR)")
    assert judge_rdma(ports, on_nodes=True).level is Level.OK
    assert judge_rdma(ports[:1], on_nodes=True).level is Level.WARN


def test_environment_modules(tmp_path: Path) -> None:
    there = {"LMOD_CMD": str(tmp_path)}
    gone = {"MODULESHOME": str(tmp_path / "gone")}
    assert check_modules(there, needed=True).level is Level.OK
    assert check_modules(gone, needed=False).level is Level.WARN
    assert check_modules({}, needed=True).level is Level.WARN
    assert check_modules({}, needed=False).level is Level.UNKNOWN


def test_the_python_environment() -> None:
    full = dict.fromkeys(("torch", "transformers", "submitit"), "1.0")
    bare = {"transformers": "4.57.0", "submitit": "1.5.3"}
    nfs, disk, odd = (Mount("/", kind, "") for kind in ("nfs4", "xfs", "hellofs"))

    def level(mount: Mount, versions: dict[str, Any], **options: bool) -> Level:
        where = {"on_nodes": True, "inside": False, **options}
        return judge_python("/env", mount, versions, **where).level

    assert level(nfs, full) is Level.OK
    assert level(nfs, bare) is Level.FAIL
    assert level(nfs, bare, inside=True) is Level.OK
    assert level(disk, full) is Level.WARN
    assert level(disk, full, on_nodes=False) is Level.OK
    assert level(odd, full) is Level.UNKNOWN


def test_the_clock() -> None:
    levels = [judge_clock(word, "adjtimex").level for word in (True, False, None)]
    assert levels == [Level.OK, Level.WARN, Level.UNKNOWN]


def test_services_are_connected_to() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        url = f"http://127.0.0.1:{server.getsockname()[1]}"
        assert connect(Endpoint("hub", url, "offline")).level is Level.OK
    refused = connect(Endpoint("hub", url, "do without"))
    assert (refused.level, refused.remedy) == (Level.WARN, "do without")
    assert "refused" in refused.evidence
    assert connect(Endpoint("hub", "hub", "")).level is Level.UNKNOWN


def test_a_proxy_is_asked_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "")
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        found = connect(Endpoint("hub", "https://hub.invalid", ""))
    assert found.level is Level.OK
    assert "proxy 127.0.0.1" in found.evidence


def test_services_that_will_not_be_asked_are_fine() -> None:
    environ = {"HF_HUB_OFFLINE": "1", "WANDB_MODE": "offline"}
    found = endpoints(environ, wandb="")
    assert [one.id for one in found] == ["network.hub", "network.wandb"]
    assert [connect(one).level for one in found] == [Level.OK, Level.OK]
    assert [one.id for one in endpoints({}, wandb=None)] == ["network.hub"]


@pytest.mark.parametrize(
    ("outcome", "level"),
    [
        (Outcome.STARTS_NOW, Level.OK),
        (Outcome.WAITS, Level.WARN),
        (Outcome.IMPOSSIBLE, Level.FAIL),
        (Outcome.UNKNOWN, Level.UNKNOWN),
    ],
)
def test_only_what_can_never_run_fails(outcome: Outcome, level: Level) -> None:
    assert judge_schedulability(Schedulability(outcome, ("why",)), "cfg.yaml").level is level


def test_a_queue_with_an_end_in_sight_is_no_fault() -> None:
    waits = Schedulability(Outcome.WAITS, wait_s=(60.0, 600.0), source="sbatch --test-only")
    assert judge_schedulability(waits, "cfg.yaml").level is Level.OK


def test_a_data_set_that_is_missing_fails_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "cfg.yaml"
    config.write_text(dump_yaml({**tiny_config(tmp_path), "cluster": "local"}))
    assert check_config(str(config)).level is Level.OK
    (tmp_path / "samples.jsonl").unlink()
    found = check_config(str(config))
    assert found.level is Level.FAIL
    assert "samples.jsonl" in found.evidence


def test_a_wrong_configuration_or_page_is_the_users_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "cfg.yaml"
    config.write_text("sluurm: 1\n")
    assert main(["assess", "--config", str(config)]) == 2
    assert "sluurm" in capsys.readouterr().err
    assert main(["assess", "--html", str(tmp_path / "no/page.html")]) == 2
    assert "--html: expected a file" in capsys.readouterr().err


def test_the_worst_comes_first_on_the_page_and_nothing_is_markup() -> None:
    found = [ok("a", "<fine>"), Finding("b", Level.FAIL, "bad & wrong", "mend <it>")]
    text = findings_page(found, host="login<1>", at=0, took_s=1.25)
    assert worst(found) is Level.FAIL
    assert text.index("bad &amp; wrong") < text.index("&lt;fine&gt;")
    assert "1 fail, 1 ok" in text
    assert "login<1>" not in text
