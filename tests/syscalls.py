"""One save under strace: what it asks of the file system, killed or failed at any one call.

The saving rank is forked from the server that has torch imported, waits until strace is attached,
and saves. strace counts calls by thread and name; a save has a thread of its own.
"""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.manifest import TrainState, list_checkpoints, step_of, verify
from submitrain.train.context import RankContext
from tests.checkpoint_ranks import Rank, World, run_ranks, start_ranks
from tests.checkpoint_saves import build, found_values, numbered, save_steps

METADATA_CALLS = (
    "fsync", "fdatasync", "rename", "renameat", "renameat2", "unlink", "unlinkat", "rmdir",
    "mkdir", "mkdirat", "symlink", "symlinkat", "link", "linkat", "truncate", "ftruncate", "chmod",
    "fchmod",
)  # fmt: skip
WRITES = ("write", "pwrite64", "writev", "pwritev", "sendfile", "copy_file_range", "fallocate")
CALLS = (*METADATA_CALLS, *WRITES)
BASE = (1, 2)
"""Steps that are published before the save of step 3; two are kept, so that it prunes."""
SETTINGS = {"keep_last_n_checkpoints": 2}
NEXT = 3
_LINE = re.compile(r"^(?P<thread>\d+) +(?P<name>\w+)\((?P<arguments>.*)")


@dataclass(frozen=True)
class Call:
    """One traced system call; ``count`` is its number among those of its name in its thread."""

    name: str
    count: int
    text: str

    @property
    def is_bulk(self) -> bool:
        """Whether it writes a part of a large file: there are many alike."""
        return self.name in WRITES and ("/model/" in self.text or "/optim/" in self.text)


def require_strace() -> None:
    """Fail with the next step where strace is missing: without it nothing here is proven."""
    if shutil.which("strace") is None:
        pytest.fail("strace is missing: apt-get install strace (make test does)", pytrace=False)


def save_when_told(rank: Rank, steps: list[int], settings: dict[str, Any]) -> None:
    """Build everything, then save every step when its gate opens."""
    model, optimizer, saver = build(rank, **settings)
    for step in steps:
        await_gate(rank, step)
        numbered(model, optimizer, step)
        saver.save(model, optimizer, TrainState(step=step), wait=False)
        saver.wait()
        _mark(rank.context.run_dir, f"saved-{step}", rank.index)


def await_gate(rank: Rank, step: int) -> None:
    """Say that this rank is ready, and wait until the test lets it save."""
    _mark(rank.context.run_dir, f"ready-{step}", rank.index)
    while not (rank.context.run_dir.root / f"gate-{step}").exists():
        time.sleep(0.005)


def _mark(run_dir: RunDir, name: str, rank: int) -> None:
    (run_dir.root / f"{name}.{rank}").touch()


def await_marks(root: Path, name: str, world: World, timeout_s: float = 60) -> None:
    """Wait until every rank came to a mark."""
    deadline = time.monotonic() + timeout_s
    while not all((root / f"{name}.{rank}").exists() for rank in range(len(world.processes))):
        assert time.monotonic() < deadline, f"no {name} in {root}"
        assert all(process.is_alive() for process in world.processes), world.results()
        time.sleep(0.005)


@contextmanager
def traced(world: World, output: Path, *options: str) -> Iterator[subprocess.Popen[str]]:
    """strace attached to every thread of every rank; detached at the end."""
    pids = [f"--attach={process.pid}" for process in world.processes]
    strace = subprocess.Popen(
        ["strace", "-f", "-y", "-s", "16", "-o", str(output), *options, *pids],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert strace.stderr is not None
    for _ in pids:
        assert "attached" in (line := strace.stderr.readline()), line
    try:
        yield strace
    finally:
        strace.send_signal(signal.SIGINT)
        try:
            strace.wait(10)
        except subprocess.TimeoutExpired:  # seen now and then; what it wrote is whole lines
            strace.kill()
            strace.wait()
        strace.stderr.close()


def make_base(folder: Path, world_size: int) -> Path:
    """A run folder with the checkpoints that are there before the save."""
    run_ranks(world_size, save_steps, folder, list(BASE), SETTINGS)
    return folder


def save_traced(base: Path, root: Path, world_size: int, *options: str) -> list[Call]:
    """Copy ``base``, save step 3 there under strace; what was called on its checkpoints."""
    world = prepare(base, root, world_size)
    with traced(world, root / "trace", *options):
        (root / f"gate-{NEXT}").touch()
        await_end(world, root)
    world.kill()
    return parse_trace((root / "trace").read_text())


def save_failing(base: Path, root: Path, fault: str) -> None:
    """Save step 3 with a fault, then step 4 without one, in the same process."""
    world = prepare(base, root, 1, steps=[NEXT, NEXT + 1])
    with traced(world, root / "trace", f"--inject={fault}"):
        (root / f"gate-{NEXT}").touch()
        await_marks(root, f"saved-{NEXT}", world)
    (root / f"gate-{NEXT + 1}").touch()
    world.results()


def await_end(world: World, root: Path, timeout_s: float = 60) -> None:
    """Wait until the save is over, or a rank is dead."""
    deadline = time.monotonic() + timeout_s
    while all(process.is_alive() for process in world.processes):
        if all((root / f"saved-{NEXT}.{rank}").exists() for rank in range(len(world.processes))):
            break
        assert time.monotonic() < deadline, f"no end of the save in {root}"
        time.sleep(0.005)


def prepare(base: Path, root: Path, world_size: int, steps: list[int] | None = None) -> World:
    """A copy of ``base`` and the ranks of its attempt 1, which wait to be told to save."""
    shutil.copytree(base, root, symlinks=True)
    steps = steps or [NEXT]
    world = start_ranks(world_size, save_when_told, root, steps, SETTINGS, attempt=1)
    await_marks(root, f"ready-{NEXT}", world)
    return world


def parse_trace(text: str, places: tuple[str, ...] = ("/checkpoints",)) -> list[Call]:
    """Calls that name something in one of the ``places``, in their order."""
    counts: dict[tuple[str, str], int] = {}
    calls = []
    for line in text.splitlines():
        match = _LINE.match(line)
        if match is None:
            continue
        key = (match["thread"], match["name"])
        counts[key] = counts.get(key, 0) + 1
        if any(place in match["arguments"] for place in places):
            calls.append(Call(match["name"], counts[key], line))
    return calls


def resume_each(rank: Rank, roots: list[Path]) -> list[Any]:
    """What a resume finds in every run folder, and what is there after the next save."""
    found = []
    for root in roots:
        context = RankContext(RunDir(root), 2, "test", rank.index, rank.world_size, 0, 1)
        model, optimizer, saver = build(Rank(context, rank.group), **SETTINGS)
        loaded = saver.load_latest(model, optimizer)
        values = found_values(loaded, model, optimizer)
        numbered(model, optimizer, 9)
        saver.save(model, optimizer, TrainState(step=9), wait=True)
        found.append((values, leftovers(root)))
    return found


def leftovers(root: Path) -> list[str]:
    """Names among the checkpoints that are neither whole checkpoints nor ``latest``."""
    folder = RunDir(root).checkpoints
    whole = {path.name for path in list_checkpoints(folder) if not verify(path)}
    return sorted({path.name for path in folder.iterdir()} - whole - {"latest"})


def steps_there(root: Path) -> list[int | None]:
    """Steps of the published checkpoints."""
    return [step_of(path) for path in list_checkpoints(RunDir(root).checkpoints)]
