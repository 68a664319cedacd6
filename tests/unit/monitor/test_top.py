"""``python -m monitor top``: on a real pseudo-terminal, in a pipe, and frame by frame."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from rich.console import Console

from submitrain.monitor.top.screen import (
    Choice,
    Key,
    Log,
    frame,
    keys_of,
    log_files,
    newest_lines,
    short_name,
)
from submitrain.monitor.watch.fleet import Fleet, FleetView, RunView
from submitrain.run_folder import list_runs
from tests.fleet_parts import WAIT_S, fire, living, process, run_named
from tests.supervised import REPOSITORY

TAKE_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "os.execv(sys.argv[1], sys.argv[1:])"
)
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """``top`` on a terminal of a size that may change."""

    def __init__(self, runs: Path, columns: int, lines: int) -> None:
        self._seen = b""
        self._controller, terminal = pty.openpty()
        self.before = termios.tcgetattr(terminal)
        self.resize(columns, lines)
        top = [sys.executable, "-m", "monitor", "top", "--runs-dir", str(runs), "--interval", "0.5"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", TAKE_TERMINAL, *top],
            # A size that is exported would be believed for ever.
            env={**os.environ, "PYTHONPATH": str(REPOSITORY), "TERM": "xterm", "COLUMNS": "40"},
            stdin=terminal,
            stdout=terminal,
            stderr=terminal,
            start_new_session=True,
        )
        self._terminal = terminal

    def resize(self, columns: int, lines: int) -> None:
        """Give the window another size."""
        size = struct.pack("HHHH", lines, columns, 0, 0)
        fcntl.ioctl(self._controller, termios.TIOCSWINSZ, size)

    def type(self, keys: str) -> None:
        """Press keys; what was shown before does not count any more."""
        self._seen = b""
        os.write(self._controller, keys.encode())

    def shows(self, *texts: str) -> str:
        """Read until one frame has all of these; returns it, without colours."""
        deadline = time.monotonic() + WAIT_S
        while True:
            frames = self._seen.decode(errors="replace").split("\x1b[H")
            for one in (ESCAPES.sub("", shown) for shown in frames):
                if all(text in one for text in texts):
                    return one
            assert time.monotonic() < deadline, (texts, frames[-2:])
            if select.select([self._controller], [], [], 0.2)[0]:
                self._seen += os.read(self._controller, 65536)

    def close(self) -> int:
        """The exit code, once it has ended by itself."""
        deadline = time.monotonic() + WAIT_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if select.select([self._controller], [], [], 0.1)[0]:
                os.read(self._controller, 65536)
        return self.process.wait(1)

    def settings(self) -> list[object]:
        """How the terminal treats keys now."""
        return termios.tcgetattr(self._terminal)


@contextmanager
def terminal(runs: Path, columns: int = 80, lines: int = 24) -> Iterator[Terminal]:
    one = Terminal(runs, columns, lines)
    try:
        yield one
    finally:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
        os.close(one._controller)
        os.close(one._terminal)


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[Path]:
    """A living run with an alert, and one that has failed."""
    with process() as pid:
        fire(living(tmp_path, "llama", pid))
        failed = run_named(tmp_path, "broken")
        failed.begin()
        failed.steps(1, 7)
        failed.dir.log(1, 0, "err").write_text("OSError: [Errno 28] No space left on device\n")
        failed.finish("failed", "rank 0 raised OSError")
        yield tmp_path


def test_keys_choose_a_run_and_show_its_logs_in_80_columns_and_after_a_resize(runs: Path) -> None:
    with terminal(runs) as top:
        first = top.shows("2 runs", "20/100", "12.3k", "disk: 2 GB are free", "done 20%")
        assert max(len(line.rstrip()) for line in first.splitlines()) <= 80
        assert len(first.splitlines()) <= 24
        top.type("\x1b[B")
        top.shows("failed: rank 0 raised OSError", "No space left on device")
        top.type("\x1b[A")
        top.shows("running", "line 39 of rank 0")
        top.type("l")
        top.shows("rank00001.err", "a word of rank 1")
        top.resize(120, 40)
        top.type("h\r")
        wide = top.shows("llama-20260101T000000-0a1b2c3d ", "line 20 of rank 0")
        assert "broken" not in wide
        assert max(len(line.rstrip()) for line in wide.splitlines()) > 80
        top.type("q")
        assert top.close() == 0
        assert top.settings() == top.before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_leaves_the_terminal_as_it_was(runs: Path, number: signal.Signals) -> None:
    with terminal(runs) as top:
        top.shows("2 runs")
        assert top.settings() != top.before
        top.process.send_signal(number)
        assert top.close() in (1, 128 + signal.SIGTERM)
        assert top.settings() == top.before


def test_without_a_terminal_it_prints_one_frame_and_leaves(runs: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "monitor", "top", "--runs-dir", str(runs)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=True,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 3
    assert "\x1b" not in done.stdout
    assert "llama-20260101T000000-0a1b2c3d" in lines[1]
    assert lines[1].split()[1:4] == ["running", "20/100", "2.0000"]
    assert lines[1].split()[-1] == "1"


@pytest.mark.parametrize("size", [(80, 24), (40, 10), (20, 5), (200, 60), (10, 3), (1, 1)])
@pytest.mark.parametrize("opened", [False, True])
def test_a_frame_never_has_more_lines_than_the_terminal(
    runs: Path, size: tuple[int, int], opened: bool
) -> None:
    view = many(Fleet(find=lambda: list_runs(runs)).poll(), 30)
    log = Log("logs/x", tuple(f"{n} " + "long " * 50 for n in range(200)), 3)
    screen = Console(width=size[0], height=size[1], force_terminal=True)
    choice = Choice(view.runs[17].status.run_id, opened=opened)
    shown = screen.render_lines(frame(view, choice, log, size=size), pad=False)
    assert len(shown) <= max(size[1], 4)
    if size[0] >= 80 and size[1] >= 24:
        text = "\n".join("".join(part.text for part in line) for line in shown)
        assert "0a1b2c17" in text
        assert "199 long" in text


def many(view: FleetView, count: int) -> FleetView:
    """The same run so many times."""
    from dataclasses import replace

    runs = tuple(
        RunView(replace(view.runs[0].status, run_id=f"llama-20260101T000000-0a1b2c{number:02d}"))
        for number in range(count)
    )
    return replace(view, runs=runs)


def test_the_choice_stays_with_its_run_when_the_order_changes(runs: Path) -> None:
    view = Fleet(find=lambda: list_runs(runs)).poll()
    choice = Choice().after(Key.DOWN, view.runs)
    assert choice.run_id.startswith("broken")
    turned = view.runs[::-1]
    assert choice.place(turned) == 0
    assert choice.after(Key.UP, turned) == choice
    assert choice.after(Key.LAST, turned).run_id.startswith("llama")
    assert Choice("gone").place(view.runs) == 0


def test_keys_are_told_apart_and_others_mean_nothing() -> None:
    assert keys_of(b"\x1b[A\x1bOBjq") == [Key.UP, Key.DOWN, Key.DOWN, Key.QUIT]
    assert keys_of(b"x\x1b[5~\xff\x1b[1;5C") == []
    assert keys_of(b"\x1b") == [Key.BACK]


def test_log_lines_are_fit_for_a_terminal(tmp_path: Path) -> None:
    path = tmp_path / "log"
    title = b"\x1b]0;owned\x07"
    path.write_bytes(
        b"a\tb\n 10%\r 20%\r\n" + title + b"\x1b[2Jred\x1b[31m\xc2\x9b2J\x00\n\n" + b"x"
    )
    assert newest_lines(path, 9) == ["a       b", " 20%", "red2J", "x"]
    assert newest_lines(path, 2) == ["red2J", "x"]
    path.write_bytes(b"y" * 10_000_000)
    assert len(newest_lines(path, 9)[0]) == 64 * 1024
    assert newest_lines(tmp_path / "gone", 9) == ["cannot be read: No such file or directory"]


def test_before_the_first_attempt_the_logs_are_those_of_the_job(tmp_path: Path) -> None:
    run = run_named(tmp_path, "new")
    run.dir.submitit.mkdir()
    log = run.dir.submitit / "17_0_log.out"
    log.write_text("starting\n")
    assert log_files(run.dir.root) == [log]


def test_a_name_is_shortened_where_runs_do_not_differ() -> None:
    assert short_name("llama-20260101T000000-0a1b2c3d", 20) == "llama-20260…0a1b2c3d"
    assert short_name("llama", 20) == "llama"
