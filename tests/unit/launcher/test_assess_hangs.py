"""Nothing that hangs holds ``assess``: programs, file systems, servers, checks themselves."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.document import dump_yaml
from submitrain.launcher.checks.assess import TOTAL_S
from submitrain.launcher.checks.finding import Check, Finding, Level, ok, run_checks
from submitrain.launcher.checks.folders import Folder, judge_folder, read_folder
from submitrain.launcher.checks.slurm import AskWithinDeadline
from submitrain.launcher.cli.main import main
from submitrain.slurm.client import Answer
from tests.tiny import tiny_config

RUNS = Folder("folder.runs", Path("/shared/runs"), "runs_dir")


def test_a_program_that_did_not_answer_is_not_asked_again() -> None:
    asked = []

    def run(command: Any, *, timeout_s: float = 0) -> Answer:
        asked.append(command[0])
        return Answer(None, "", "silent") if command[0] == "sacctmgr" else Answer(0, "yes", "")

    patient = AskWithinDeadline(run, time.monotonic() + 60)
    for name in ("sacctmgr", "scontrol", "sacctmgr", "scontrol"):
        patient([name])
    assert asked == ["sacctmgr", "scontrol", "scontrol"]
    assert AskWithinDeadline(run, time.monotonic())(["scontrol"]).code is None


def test_a_probe_that_stops_is_given_up_with_what_it_told_before(tmp_path: Path) -> None:
    stops = (
        'import os, signal; print(\'{"path": "/else"}\', flush=True); '
        "os.kill(os.getpid(), signal.SIGSTOP)"
    )
    found = read_folder(tmp_path, limit_s=3, program=[sys.executable, "-c", stops])
    assert (found.path, found.hung_s) == ("/else", 3)
    assert judge_folder(RUNS, found, on_nodes=False).level is Level.FAIL


@pytest.fixture
def hung_mount(tmp_path: Path) -> Iterator[Path]:
    """A file system that really hangs: FUSE, and nobody answers the kernel."""
    try:
        server = os.open("/dev/fuse", os.O_RDWR)
    except OSError as error:
        pytest.skip(f"needs /dev/fuse: {error}")
    point = tmp_path / "hung"
    point.mkdir()
    options = f"fd={server},rootmode=40000,user_id=0,group_id=0".encode()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"hung", str(point).encode(), b"fuse", 0, options) != 0:
        os.close(server)
        pytest.skip(f"needs the right to mount: {os.strerror(ctypes.get_errno())}")
    yield point
    os.close(server)
    subprocess.run(["umount", "--lazy", point], check=True)


@contextmanager
def full_server() -> Iterator[str]:
    """A server whose queue is full: the kernel drops who wants to connect."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as server,
        socket.create_connection(server.getsockname()),
    ):
        yield f"http://127.0.0.1:{server.getsockname()[1]}"


def _hanging_programs(folder: Path) -> str:
    """A PATH on which everything that is asked never answers."""
    folder.mkdir()
    for name in ("scontrol", "sinfo", "sacctmgr", "srun", "sbatch", "timedatectl"):
        (folder / name).write_text("#!/bin/sh\nexec sleep 60\n")
        (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_nothing_that_hangs_holds_the_command(
    tmp_path: Path,
    hung_mount: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("PATH", _hanging_programs(tmp_path / "bin"))
    monkeypatch.setenv("HF_HOME", str(hung_mount / "cache"))
    with full_server() as url:
        monkeypatch.setenv("HF_ENDPOINT", url)
        config = tmp_path / "cfg.yaml"
        config.write_text(dump_yaml({**tiny_config(tmp_path), "cluster": "slurm"}))
        began = time.monotonic()
        code = main(["assess", "--json", "--config", str(config)])
        took_s = time.monotonic() - began
    told = json.loads(capsys.readouterr().out)
    found = {one["id"]: one for one in told["findings"]}
    assert TOTAL_S < 10
    assert took_s < 30, "far from the 60 s of the programs, with room for a busy machine"
    assert code == 1
    assert found["slurm.controller"]["level"] == "fail"
    assert found["slurm.partitions"]["level"] == "unknown"
    assert found["folder.hf_cache"]["level"] == "fail"
    assert "stat did not return" in found["folder.hf_cache"]["evidence"]
    assert "fuse" in found["folder.hf_cache"]["evidence"]
    assert found["folder.runs"]["level"] == "warn"
    assert found["containers"]["level"] == "unknown"
    assert found["config.verdict"]["level"] == "unknown"
    assert "no connection within 2 s" in found["network.hub"]["evidence"]


def test_a_configuration_and_a_page_on_a_hung_file_system_hold_nothing(
    hung_mount: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    config, page = hung_mount / "cfg.yaml", hung_mount / "page.html"
    assert main(["assess", "--json", "--config", str(config), "--html", str(page)]) == 2
    told = capsys.readouterr()
    found = {one["id"]: one for one in json.loads(told.out)["findings"]}
    assert found["config"]["level"] == "unknown"
    assert "may hang" in found["config"]["remedy"]
    assert found["python"]["level"] != "fail"
    assert "could not be written within" in told.err


def test_checks_run_at_once_and_a_late_or_broken_one_is_unknown() -> None:
    release = threading.Event()
    both = threading.Barrier(2)

    def late() -> list[Finding]:
        release.wait(60)
        return []

    def meet() -> list[Finding]:
        both.wait(60)
        return [ok("met", "")]

    def breaks() -> list[Finding]:
        raise ValueError("a bug")

    checks = [
        Check("late", late, 0.2, "look later"),
        Check("one", meet, 60),
        Check("other", meet, 60),
        Check("breaks", breaks, 60),
    ]
    found = run_checks(checks)
    release.set()
    assert [(one.id, str(one.level)) for one in found] == [
        ("late", "unknown"),
        ("met", "ok"),
        ("met", "ok"),
        ("breaks", "unknown"),
    ]
    assert found[0].remedy == "look later"
    assert "a bug" in found[-1].evidence
