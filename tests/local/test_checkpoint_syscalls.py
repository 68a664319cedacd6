"""A save that is killed, or refused by the system, at any one of its calls; bad file systems.

By default it is killed at every metadata operation, at every write of a small file and at a sample
of the writes of tensors; with SUBMITRAIN_EVERY_CALL=1 at every one.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from submitrain.events import Kind
from submitrain.run_folder import RunDir
from tests.checkpoint_ranks import run_ranks, start_ranks
from tests.checkpoint_saves import events, load_values
from tests.syscalls import (
    BASE,
    CALLS,
    NEXT,
    SETTINGS,
    Call,
    await_marks,
    make_base,
    parse_trace,
    require_strace,
    resume_each,
    save_failing,
    save_traced,
    save_when_told,
    steps_there,
    traced,
)

pytestmark = pytest.mark.ranks
BULK_SAMPLE = 12
EVERY_CALL = os.environ.get("SUBMITRAIN_EVERY_CALL") == "1"
TRACE = "--trace=" + ",".join(CALLS)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one rank with two checkpoints; saving a third prunes the first."""
    require_strace()
    return make_base(tmp_path_factory.mktemp("base") / "run", 1)


@pytest.fixture(scope="module")
def undisturbed(base: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Call]:
    """All calls of one save, in their order."""
    root = tmp_path_factory.mktemp("undisturbed") / "run"
    calls = save_traced(base, root, 1, TRACE)
    assert steps_there(root) == [2, 3]
    return calls


def position(calls: list[Call], *parts: str) -> int:
    """Where in the order the first call is whose text has all ``parts``."""
    return next(i for i, call in enumerate(calls) if all(part in call.text for part in parts))


def test_everything_is_flushed_before_the_rename_that_publishes_it(undisturbed: list[Call]) -> None:
    publish = position(undisturbed, "rename(", f'step-{NEXT:08d}.tmp-1", ', f'step-{NEXT:08d}")')
    before = undisturbed[:publish]
    written = {
        text.partition("<")[2].partition(">")[0]
        for text in (call.text for call in before)
        if text.partition("(")[0].endswith("write")
    }
    renames = [call.text.split('"')[1::2] for call in before if call.name == "rename"]
    final = {old: new for old, new, *_ in renames}
    flushed: dict[str, int] = {}
    for number, call in enumerate(before):
        if call.name == "fsync":
            flushed[call.text.partition("<")[2].partition(">")[0]] = number
    assert len(written) >= 5
    for path in written:
        last_write = max(
            i for i, call in enumerate(before) if f"<{path}>" in call.text and call.name == "write"
        )
        assert max(flushed.get(path, -1), flushed.get(final.get(path, ""), -1)) > last_write, path
        folder = str(Path(path).parent)
        names = [
            i for i, call in enumerate(before) if call.name == "rename" and folder in call.text
        ]
        assert flushed[folder] > max([last_write, *names]), f"the names in {folder}"
    after = undisturbed[publish + 1]
    assert (after.name, after.text.endswith("/checkpoints>) = 0")) == ("fsync", True)


def test_nothing_older_is_touched_before_the_new_one_is_durable(undisturbed: list[Call]) -> None:
    durable = position(undisturbed, "rename(", f'step-{NEXT:08d}.tmp-1", ') + 1
    older = [position(undisturbed, f"step-{step:08d}") for step in BASE[:1]]
    assert min(older) > durable


def points(calls: list[Call]) -> list[Call]:
    """Where to kill: everything but most of the writes of tensors."""
    bulk = [call for call in calls if call.is_bulk]
    every = 1 if EVERY_CALL else max(1, len(bulk) // BULK_SAMPLE)
    sampled = {id(call) for call in bulk[::every]}
    return [call for call in calls if not call.is_bulk or id(call) in sampled]


def test_killed_at_any_call_a_resume_finds_the_new_checkpoint_or_the_one_before(
    base: Path, undisturbed: list[Call], tmp_path: Path
) -> None:
    chosen = points(undisturbed)
    assert {"fsync", "rename", "unlinkat", "symlink", "mkdir", "write"} <= {c.name for c in chosen}

    def kill_at(number: int) -> Path:
        call, root = chosen[number], tmp_path / f"{number:03d}"
        save_traced(base, root, 1, f"--inject={call.name}:signal=KILL:when={call.count}")
        assert not (root / f"saved-{NEXT}.0").exists(), f"not killed at {call}"
        return root

    with ThreadPoolExecutor(2) as pool:
        roots = list(pool.map(kill_at, range(len(chosen))))
    published = [NEXT in steps_there(root) for root in roots]
    found = run_ranks(1, resume_each, tmp_path / "resumes", roots)[0]
    for call, is_there, (values, rest) in zip(chosen, published, found, strict=True):
        step = NEXT if is_there else BASE[-1]
        assert (values, rest) == ([step, [float(step)]], []), call.text
    assert published == sorted(published), "what is published stays published"
    assert {True, False} == set(published)


FAULTS = [
    "fsync:error=EIO:when=2+",
    "fsync:error=EIO:when=9",
    "fsync:error=EIO:when=10",
    "write:error=ENOSPC:when=5",
    "write:error=EDQUOT:when=40",
    "write:error=EDQUOT:when=99",
    "rename:error=EIO:when=1",
    "rename:error=EIO:when=2",
    "rename:error=EIO:when=4",
    "mkdir,mkdirat:error=EDQUOT",
    "unlinkat,rmdir:error=EIO",
    "symlink:error=EROFS",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_a_call_that_fails_costs_at_most_this_checkpoint_aloud_and_the_next_save_succeeds(
    base: Path, tmp_path: Path, fault: str
) -> None:
    root = tmp_path / "run"
    save_failing(base, root, fault)
    failed = [event["step"] for event in events(root, Kind.CHECKPOINT_FAILED)]
    saved = [event["step"] for event in events(root, Kind.CHECKPOINT)]
    harmless = fault.startswith(("unlinkat", "symlink"))
    assert failed == ([] if harmless else [NEXT])
    assert saved == [*BASE, *([NEXT] if harmless else []), NEXT + 1]
    assert run_ranks(1, load_values, root, attempt=2) == [[NEXT + 1, [float(NEXT + 1)]]]
    assert not [path.name for path in RunDir(root).checkpoints.iterdir() if ".tmp-" in path.name]


@pytest.mark.parametrize("which", [0, -1], ids=["first-file", "manifest"])
def test_a_file_that_cannot_be_made_costs_this_checkpoint(
    base: Path, tmp_path: Path, which: int
) -> None:
    save_traced(base, tmp_path / "opens", 1, "--trace=openat")
    opens = parse_trace((tmp_path / "opens/trace").read_text())
    made = [call for call in opens if "O_CREAT" in call.text and f"{NEXT:08d}.tmp-1" in call.text]
    root = tmp_path / "run"
    save_failing(base, root, f"openat:error=EROFS:when={made[which].count}")
    [failure] = events(root, Kind.CHECKPOINT_FAILED)
    assert (failure["step"], "Read-only file system" in failure["reason"]) == (NEXT, True)
    assert run_ranks(1, load_values, root, attempt=2) == [[NEXT + 1, [float(NEXT + 1)]]]


def test_a_rename_into_place_that_was_not_made_durable_is_reported_and_the_copy_is_whole(
    base: Path, tmp_path: Path, undisturbed: list[Call]
) -> None:
    publish = position(undisturbed, "rename(", f'step-{NEXT:08d}.tmp-1", ')
    count = undisturbed[publish + 1].count
    root = tmp_path / "run"
    save_failing(base, root, f"fsync:error=EIO:when={count}")
    assert [event["step"] for event in events(root, Kind.CHECKPOINT_FAILED)] == [NEXT]
    assert run_ranks(1, load_values, root, attempt=2) == [[NEXT + 1, [float(NEXT + 1)]]]


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own for checkpoints."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs needs root: run this test as root, e.g. in a container")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=20m", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def test_a_file_system_that_turns_read_only_costs_the_saves_until_it_is_back(
    tmp_path: Path, mounted: Path
) -> None:
    root = tmp_path / "run"
    root.mkdir()
    RunDir(root).checkpoints.symlink_to(mounted)
    world = start_ranks(2, save_when_told, root, [1, 2, 3], SETTINGS)
    for step, how in ((1, "rw"), (2, "ro"), (3, "rw")):
        await_marks(root, f"ready-{step}", world)
        remount(mounted, how)
        (root / f"gate-{step}").touch()
        await_marks(root, f"saved-{step}", world)
    world.results()
    [failure] = events(root, Kind.CHECKPOINT_FAILED)
    assert (failure["step"], "Read-only file system" in failure["reason"]) == (2, True)
    assert [event["step"] for event in events(root, Kind.CHECKPOINT)] == [1, 3]
    assert run_ranks(2, load_values, root) == [[3, [3.0]]] * 2


def test_a_slow_file_system_makes_a_save_slow_and_nothing_else(base: Path, tmp_path: Path) -> None:
    root = tmp_path / "run"
    calls = save_traced(base, root, 1, TRACE, "--inject=fsync:delay_exit=200000")
    [*_, saved] = events(root, Kind.CHECKPOINT)
    flushes = sum(call.name == "fsync" for call in calls)
    assert saved["step"] == NEXT
    assert saved["save_s"] > 0.2 * (flushes - 4), "each flush took 0.2 s longer"
    assert events(root, Kind.CHECKPOINT_FAILED) == []


def test_strace_counts_calls_by_thread_as_this_file_assumes(base: Path, tmp_path: Path) -> None:
    """A second save has a thread, and so a count, of its own: the first fault hits it again."""
    root = tmp_path / "run"
    world = start_ranks(1, save_when_told, root, [1, 2], SETTINGS)
    await_marks(root, "ready-1", world)
    with traced(world, root / "trace", "--inject=symlink:error=EIO:when=1"):
        for step in (1, 2):
            (root / f"gate-{step}").touch()
            await_marks(root, f"saved-{step}", world)
    world.results()
    assert (root / "trace").read_text().count("(INJECTED)") == 2
