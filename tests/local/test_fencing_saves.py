"""A save that is frozen after any of its calls cannot hurt the attempt that went on without it."""

from __future__ import annotations

import hashlib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from submitrain.events import read_events
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.manifest import TrainState
from tests.checkpoint_ranks import Rank, World, run_ranks
from tests.checkpoint_saves import build, found_values, load_values, numbered
from tests.syscalls import (
    METADATA_CALLS,
    NEXT,
    SETTINGS,
    Call,
    make_base,
    parse_trace,
    prepare,
    require_strace,
    save_traced,
    steps_there,
    traced,
)

pytestmark = pytest.mark.ranks
CHECKS = "getdents64"
"""How a look at ``attempts/`` shows in the trace."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank with two checkpoints; saving a third prunes the first."""
    require_strace()
    return make_base(tmp_path_factory.mktemp("base") / "run", 1)


@pytest.fixture(scope="module")
def moments(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """Every metadata call and every look at the fence, from the manifest to the end."""
    root = tmp_path_factory.mktemp("moments") / "run"
    save_traced(base, root, 1, f"--trace={CHECKS}," + ",".join(METADATA_CALLS))
    calls = parse_trace((root / "trace").read_text(), ("/checkpoints", "/attempts"))
    first = next(i for i, call in enumerate(calls) if "manifest" in call.text)
    looks = [
        c for c in calls if c.name != CHECKS or ("/attempts" in c.text and " = 0" not in c.text)
    ]
    return [c for c in looks if c in calls[first:] and c.name not in ("unlinkat", "rmdir")]


def take_over(rank: Rank, saves: bool) -> list[object]:
    """The next attempt: load, and with ``saves`` go on until every older checkpoint is pruned."""
    model, optimizer, saver = build(rank, **SETTINGS)
    loaded = saver.load_latest(model, optimizer)
    found = found_values(loaded, model, optimizer)
    assert loaded is not None
    for step in range(loaded.step + 1, loaded.step + (4 if saves else 1)):
        numbered(model, optimizer, step)
        saver.save(model, optimizer, TrainState(step=step, position=7), wait=True)
    return [loaded.step, found]


def tree(root: Path) -> dict[str, str]:
    """What is there for readers: every file, link and folder below, with its content's digest."""
    found = {}
    for path in sorted(root.rglob("*")):
        if path.is_symlink():
            found[str(path)] = f"-> {path.readlink()}"
        elif path.is_file():
            found[str(path)] = hashlib.sha256(path.read_bytes()).hexdigest()
        else:
            found[str(path)] = "folder"
    return found


def await_stopped(world: World, root: Path) -> None:
    """Wait until every thread of the saving process stands still, by the signal.

    strace, too, lets all of them stand still for a moment, while it attaches.
    """
    pid = world.processes[0].pid
    deadline = time.monotonic() + 30
    while True:
        states = [
            (task / "stat").read_text().rpartition(")")[2].split()[0]
            for task in Path(f"/proc/{pid}/task").iterdir()
        ]
        signalled = "--- stopped by SIGSTOP ---" in (root / "trace").read_text()
        if signalled and set(states) <= {"T", "t"}:
            return
        assert time.monotonic() < deadline, f"{root}: {states}"
        time.sleep(0.005)


@contextmanager
def ending(world: World) -> Iterator[None]:
    """Leave no rank behind, frozen or not."""
    try:
        yield
    finally:
        world.kill()


def freeze_and_overtake(base: Path, root: Path, call: Call, *, saves: bool) -> None:
    """Freeze a save after ``call``, let attempt 2 work, thaw: nothing that it sees has changed."""
    world = prepare(base, root, 1)
    stop = f"--inject={call.name}:signal=STOP:when={call.count}"
    with ending(world), traced(world, root / "trace", stop):
        (root / f"gate-{NEXT}").touch()
        await_stopped(world, root)
        there = steps_there(root)
        assert RunDir(root).claim_attempt() == 2
        [(loaded, _)] = run_ranks(1, take_over, root, saves, attempt=2)
        assert loaded == there[-1]
        before = tree(RunDir(root).checkpoints)
        events = list(read_events(RunDir(root).events(0)))
        pid = world.processes[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
        world.processes[0].join(30)
        assert not world.processes[0].is_alive(), f"no end after {call.text}"
    after = tree(RunDir(root).checkpoints)
    scratch = {name for name in before if ".tmp-1" in name or ".old-1" in name or ".old-2" in name}
    changed = {n for n in before.keys() | after.keys() if before.get(n) != after.get(n)} - scratch
    assert changed == set(), call.text
    # A line may follow a look at the fence that came before; readers pass over it.
    assert list(read_events(RunDir(root).events(0))) == events, call.text


def _last_look_before(names: list[str], name: str) -> int:
    """Where the fence is asked for the last time before a call.

    Frozen behind that, a rank lets ``latest`` point to its own checkpoint: the very one that a
    successor which has saved nothing yet has loaded.
    """
    end = names.index(name)
    return max(number for number in range(end) if names[number] == CHECKS)


@pytest.mark.parametrize("saves", [True, False], ids=["and-saved", "and-only-loaded"])
def test_frozen_after_any_call_it_changes_nothing_for_its_successor(
    base: Path, moments: list[Call], tmp_path: Path, saves: bool
) -> None:
    names = [call.name for call in moments]
    assert {"fsync", "rename", "symlink", CHECKS} <= set(names)
    every = moments if saves else moments[: _last_look_before(names, "symlink")]
    for number, call in enumerate(every):
        freeze_and_overtake(base, tmp_path / f"{number:03d}", call, saves=saves)
    newest = tmp_path / f"{len(every) - 1:03d}"
    expected = steps_there(newest)[-1]
    assert run_ranks(1, load_values, newest, attempt=3) == [[expected, [float(expected or 0)]]]
