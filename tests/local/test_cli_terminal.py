"""On a terminal: a live view, and Ctrl-C asks once what is meant. Tested on a real pty."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from submitrain.launcher.run import Run
from submitrain.run_folder import list_runs
from submitrain.status import RunState
from tests.local.test_launch import end_processes
from tests.paths import REPOSITORY, TOY_RANK
from tests.tiny import tiny_config

WAIT_S = 90.0
CTRL_C = b"\x03"


class Terminal:
    """``python -m launcher cfg.yaml`` on a pseudo-terminal, as a person would have it."""

    def __init__(self, folder: Path) -> None:
        self.seen = b""
        controller, terminal = pty.openpty()
        self._controller = controller
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, sys.executable, "-m", "launcher", "cfg.yaml"],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "120"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        os.close(terminal)

    def read_until(self, text: bytes) -> None:
        """Read what is shown until ``text`` is."""
        deadline = time.monotonic() + WAIT_S
        while text not in self.seen:
            assert time.monotonic() < deadline, self.seen[-2000:]
            if select.select([self._controller], [], [], 0.2)[0]:
                self.seen += os.read(self._controller, 65536)

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._controller, keys)

    def close(self) -> int:
        """Read the rest; returns the exit code."""
        try:
            while data := os.read(self._controller, 65536):
                self.seen += data
        except OSError:
            pass
        finally:
            os.close(self._controller)
        return self.process.wait(WAIT_S)


TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project whose run takes a while."""
    shutil.copy(TOY_RANK, tmp_path)
    config = tiny_config(
        tmp_path, cluster="local", step_scheduler={"max_steps": 40}, runs_dir="runs"
    )
    (tmp_path / "cfg.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    monkeypatch.setenv("TOY_STEP_S", "0.2")
    yield tmp_path
    for run in list_runs(tmp_path / "runs"):
        end_processes(Run(run))


def the_run(folder: Path) -> Run:
    """The only run."""
    [found] = list_runs(folder / "runs")
    return Run(found)


def test_ctrl_c_and_d_detach_and_the_run_finishes(folder: Path) -> None:
    terminal = Terminal(folder)
    terminal.read_until(b"tokens/s")
    terminal.type(CTRL_C)
    terminal.read_until(b"[k]eep watching")
    terminal.type(b"d\n")
    assert terminal.close() == 0
    assert b"python -m launcher cancel" in terminal.seen
    assert the_run(folder).wait(WAIT_S).state is RunState.FINISHED


def test_ctrl_c_and_s_save_and_stop(folder: Path) -> None:
    terminal = Terminal(folder)
    terminal.read_until(b"tokens/s")
    terminal.type(CTRL_C)
    terminal.read_until(b"[k]eep watching")
    terminal.type(b"s\n")
    assert terminal.close() == 1
    assert the_run(folder).status().state is RunState.CANCELLED


def test_a_second_ctrl_c_detaches_at_once(folder: Path) -> None:
    terminal = Terminal(folder)
    terminal.read_until(b"tokens/s")
    terminal.type(CTRL_C)
    terminal.read_until(b"[k]eep watching")
    terminal.type(CTRL_C)
    assert terminal.close() == 0
    assert not the_run(folder).status().state.ended


def test_keep_watching_ends_with_the_summary(folder: Path) -> None:
    terminal = Terminal(folder)
    terminal.read_until(b"tokens/s")
    terminal.type(CTRL_C)
    terminal.read_until(b"[k]eep watching")
    terminal.type(b"k\n")
    assert terminal.close() == 0
    assert b"finished" in terminal.seen
