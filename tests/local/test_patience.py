"""A run folder whose file system fails for a while does not end the run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from submitrain.launcher.supervisor.ownership import Ownership, retry_on_oserror
from submitrain.run_folder import RunDir, write_json_atomically
from tests.supervised import counting_run


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    """A file system that cannot be written to."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs needs root: run this test as root, e.g. in a container")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], check=True)
    RunDir(folder).claim_attempt()
    remount(folder, "ro")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def fill(folder: Path) -> None:
    """Somebody else uses up what files the file system has left."""
    folder.mkdir()
    with suppress(OSError):
        for number in range(1000):
            (folder / str(number)).touch()


def test_an_attempt_is_claimed_once_the_folder_can_be_written_again(read_only: Path) -> None:
    run_dir, tries = RunDir(read_only), []

    def claim() -> int:
        tries.append(1)
        if len(tries) == 3:
            remount(read_only, "rw")
        return run_dir.claim_attempt(after=1)

    assert retry_on_oserror(claim, pause_s=0.01) == 2
    assert len(tries) == 3
    assert run_dir.logs(2).is_dir()


def test_patience_has_an_end(read_only: Path) -> None:
    with pytest.raises(OSError, match="Read-only file system"):
        retry_on_oserror((read_only / "new").mkdir, patience_s=0.05, pause_s=0.01)


@pytest.mark.ranks
def test_a_rank_that_dies_while_the_run_folders_disk_is_full_is_restarted_later(
    tmp_path: Path,
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=20m,nr_inodes=300", "tmpfs", disk], check=True
    )
    try:
        plan = {"steps": 40, "step_s": 0.1, "save_every": 1000}
        with counting_run(disk / "run", plan=plan, nodes=1, tasks=2) as run:
            run.wait_for_step(5)
            ranks = [run.rank_pid(rank) for rank in range(2)]
            for number in (signal.SIGSTOP, signal.SIGKILL):
                for pid in ranks:
                    os.kill(pid, number)
                if number == signal.SIGSTOP:  # these ranks write into the run folder themselves
                    fill(disk / "others")
            threading.Timer(8.0, shutil.rmtree, (disk / "others",)).start()
            assert run.wait(120) == 0
            assert run.summary["state"] == "finished"
            assert [end["cause"] for end in run.ends()][-1] == "finished"
            assert "run_folder_fails" in run.log
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_job_that_slurm_restarts_after_the_runs_end_has_nothing_to_do(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    summary = {"state": "failed", "cause": "program_error", "explanation": "x", "job_id": "7"}
    write_json_atomically(run_dir.summary, summary)
    again = Ownership(run_dir, "7", 1, {}).begin()
    assert again is not None
    assert (again.cause, again.action) == ("program_error", "stop")
    assert Ownership(run_dir, "8", 0, {}).begin() is None
    write_json_atomically(run_dir.summary, {**summary, "state": "stopped", "cause": "terminated"})
    assert Ownership(run_dir, "7", 1, {}).begin() is None
