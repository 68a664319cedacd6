"""Whatever is killed, damaged or full: a run resumes from a checkpoint that is whole."""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.checkpoint_models import (
    adamw,
    checkpointer,
    differences,
    llama,
    shard,
    train_steps,
    whole_state,
)
from tests.checkpoint_ranks import Rank, run_ranks, start_ranks
from train.checkpoint.checkpointer import Checkpointer
from train.checkpoint.folders import CheckpointFolders
from train.checkpoint.manifest import list_checkpoints, newest_verified, step_of, verify
from train.checkpoint.state import TrainState
from train.errors import CheckpointError, FencedError
from train.events import Kind, read_events
from train.rundir import RunDir

pytestmark = pytest.mark.ranks


def numbered(model: nn.Module, optimizer: torch.optim.Optimizer, step: int) -> None:
    """Let every value in model and optimizer be ``step``: any mixture of two saves would show."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(step)
            optimizer.state[parameter] = {
                "step": torch.tensor(float(step)),
                "exp_avg": torch.full_like(parameter, step),
                "exp_avg_sq": torch.full_like(parameter, step),
            }


def build(rank: Rank, **settings: Any) -> tuple[nn.Module, torch.optim.Optimizer, Checkpointer]:
    model = shard(llama(), rank.world_size)
    return model, adamw(model), checkpointer(rank, **settings)


def save_steps(rank: Rank, steps: list[int], settings: dict[str, Any]) -> list[float]:
    """Save checkpoints whose every value is their step; returns how long each blocked."""
    model, optimizer, saver = build(rank, **settings)
    blocked = []
    for step in steps:
        numbered(model, optimizer, step)
        blocked.append(saver.save(model, optimizer, TrainState(step=step), wait=False))
    saver.close()
    return blocked


def save_forever(rank: Rank, settings: dict[str, Any]) -> None:
    """Resume, then save as fast as possible until killed."""
    model, optimizer, saver = build(rank, **settings)
    loaded = saver.load_latest(model, optimizer)
    for step in range(loaded.step + 1 if loaded else 1, 10**6):
        numbered(model, optimizer, step)
        saver.save(model, optimizer, TrainState(step=step), wait=False)


def load_values(rank: Rank) -> tuple[int, set[float]] | None:
    """Step that is loaded and all values found in model and optimizer then; None for no step."""
    model, optimizer, saver = build(rank)
    loaded = saver.load_latest(model, optimizer)
    if loaded is None:
        return None
    state = whole_state(model, optimizer)
    return loaded.step, {value for tensor in state.values() for value in tensor.unique().tolist()}


def events(root: Path, kind: Kind) -> list[dict[str, Any]]:
    return list(read_events(RunDir(root).events(0), kinds=frozenset({kind})))


def published_steps(root: Path) -> list[int | None]:
    return [step_of(path) for path in list_checkpoints(RunDir(root).checkpoints)]


def test_killed_at_twenty_random_moments_every_resume_is_from_a_whole_checkpoint(
    tmp_path: Path,
) -> None:
    moments = random.Random(0)
    checkpoints, last_step = RunDir(tmp_path).checkpoints, 0
    for _ in range(20):
        world = start_ranks(2, save_forever, tmp_path, {"keep_last_n_checkpoints": 2})
        deadline, before = time.monotonic() + 60, set(checkpoints.glob("*.tmp-*"))
        while not set(checkpoints.glob("*.tmp-*")) - before and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(moments.uniform(0, 0.5))
        world.kill()
        newest = newest_verified(checkpoints)
        if newest is None:
            continue
        step = step_of(newest) or 0
        assert run_ranks(1, load_values, tmp_path) == [(step, {float(step)})]
        assert step >= last_step
        last_step = step
    assert last_step > 20


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip_bit, truncate, Path.unlink], ids=lambda f: f.__name__)
@pytest.mark.parametrize(
    "file", ["model/shard-00002*", "optim/__0_0.distcp", "optim/.metadata", "manifest.json"]
)
def test_a_damaged_checkpoint_is_rejected_aloud_and_the_one_before_it_is_loaded(
    tmp_path: Path, damage: Any, file: str
) -> None:
    run_ranks(2, save_steps, tmp_path, [3, 6], {})
    newest = RunDir(tmp_path).checkpoints / "step-00000006"
    [path] = newest.glob(file)
    damage(path)
    assert run_ranks(2, load_values, tmp_path) == [(3, {3.0})] * 2
    [rejection] = events(tmp_path, Kind.CHECKPOINT_REJECTED)
    assert rejection["path"] == str(newest)
    assert path.name in rejection["reason"]


def test_a_stray_weights_file_is_a_reason_to_reject(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [3, 6], {})
    newest = RunDir(tmp_path).checkpoints / "step-00000006"
    [weights] = newest.glob("model/*.safetensors")
    shutil.copy(weights, weights.with_name("shard-00002-model-00001-of-00001.safetensors"))
    assert run_ranks(1, load_values, tmp_path) == [(3, {3.0})]


def test_when_none_is_whole_the_error_says_what_was_found(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [3, 6], {})
    for path in RunDir(tmp_path).checkpoints.glob("step-*/manifest.json"):
        path.unlink()
    with pytest.raises(AssertionError, match=r"2 checkpoints, none of them whole: step-00000003"):
        run_ranks(1, load_values, tmp_path)


def test_an_empty_folder_is_a_fresh_start(tmp_path: Path) -> None:
    assert run_ranks(2, load_values, tmp_path) == [None, None]


def test_temporary_folders_are_no_checkpoints_and_only_those_of_older_attempts_go(
    tmp_path: Path,
) -> None:
    run = RunDir(tmp_path)
    (old, newer) = (run.checkpoints / f"step-00000009.tmp-{attempt}" for attempt in (1, 7))
    for folder in (old, newer):
        folder.mkdir(parents=True)
        (folder / "manifest.json").write_text("{}")
    assert run_ranks(1, load_values, tmp_path, attempt=2) == [None]
    run_ranks(1, save_steps, tmp_path, [1], {}, attempt=2)
    assert (old.exists(), newer.exists()) == (False, True)


def test_a_bad_checkpoint_of_the_same_step_is_replaced_and_not_written_into(tmp_path: Path) -> None:
    run_ranks(2, save_steps, tmp_path, [3, 6], {})
    newest = RunDir(tmp_path).checkpoints / "step-00000006"
    flip_bit(newest / "optim/__0_0.distcp")
    stray = newest / "stray"
    stray.touch()
    run_ranks(2, save_steps, tmp_path, [6], {})
    assert not stray.exists()
    assert run_ranks(2, load_values, tmp_path) == [(6, {6.0})] * 2


def test_a_whole_checkpoint_of_the_same_state_is_not_written_again(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [3], {})
    manifest = RunDir(tmp_path).checkpoints / "step-00000003/manifest.json"
    before = manifest.stat()
    run_ranks(1, save_steps, tmp_path, [3], {})
    assert manifest.stat() == before


def test_pruning_keeps_the_last_n(tmp_path: Path) -> None:
    run_ranks(2, save_steps, tmp_path, [1, 2, 3, 4, 5], {"keep_last_n_checkpoints": 2})
    assert published_steps(tmp_path) == [4, 5]
    assert sorted(path.name for path in RunDir(tmp_path).checkpoints.iterdir()) == [
        "latest",
        "step-00000004",
        "step-00000005",
    ]


def test_latest_points_to_the_newest(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [1, 2], {})
    assert (RunDir(tmp_path).checkpoints / "latest").readlink() == Path("step-00000002")


def test_damaged_checkpoints_do_not_count_when_pruning(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [1, 2, 3], {"keep_last_n_checkpoints": 3})
    folder = RunDir(tmp_path).checkpoints
    for step in (2, 3):
        truncate(folder / f"step-{step:08d}/optim/__0_0.distcp")
    removed = CheckpointFolders(folder, 9).prune(2, verified=folder / "step-00000003", rejected=())
    assert [step_of(path) for path in removed] == [2]


def save_with_newer_attempt(rank: Rank, when: str) -> str:
    """Save while another attempt claims the run; says what came of it."""
    model, optimizer, saver = build(rank)
    numbered(model, optimizer, 1)
    if rank.index == 0 and when == "before":
        rank.context.run_dir.claim_attempt()
    torch.distributed.barrier()
    saver.save(model, optimizer, TrainState(step=1), wait=False)
    try:
        saver.wait()
    except FencedError as error:
        return str(error)
    return "published"


def test_an_attempt_with_a_successor_refuses_to_publish(tmp_path: Path) -> None:
    results = run_ranks(2, save_with_newer_attempt, tmp_path, "before")
    assert all("attempt 2 owns the run folder" in result for result in results)
    assert list(RunDir(tmp_path).checkpoints.glob("step-*")) == []


def save_large_file_refused(rank: Rank, wait: bool) -> tuple[str, int]:
    """Save while this rank 1 may not write files over 4 kB, then again without the limit."""
    model, optimizer, saver = build(rank)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    problem = ""
    if rank.index == 1:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    numbered(model, optimizer, 1)
    try:
        saver.save(model, optimizer, TrainState(step=1), wait=wait)
        saver.wait()
    except CheckpointError as error:
        problem = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    numbered(model, optimizer, 2)
    saver.save(model, optimizer, TrainState(step=2), wait=True)
    return problem, len(list_checkpoints(rank.context.run_dir.checkpoints))


def test_a_save_that_one_rank_cannot_write_is_dropped_and_training_goes_on(tmp_path: Path) -> None:
    assert run_ranks(2, save_large_file_refused, tmp_path, False) == [("", 1)] * 2
    [failure] = events(tmp_path, Kind.CHECKPOINT_FAILED)
    assert (failure["step"], "rank" in failure["reason"]) == (1, True)
    assert not list(RunDir(tmp_path).checkpoints.glob("*.tmp-*"))


def test_a_save_that_is_waited_for_and_fails_is_an_error_on_every_rank(tmp_path: Path) -> None:
    for problem, count in run_ranks(2, save_large_file_refused, tmp_path, True):
        assert "not saved" in problem
        assert count == 1


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 400 kB: one checkpoint of the tiny model fits, two do not."""
    if os.geteuid() != 0:
        pytest.fail("mounting a tmpfs needs root: run this test as root, e.g. in a container")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=400k", "tmpfs", folder], check=True)
    yield folder
    subprocess.run(["umount", folder], check=True)


def test_a_full_disk_costs_a_checkpoint_and_not_the_run(tmp_path: Path, small_disk: Path) -> None:
    root = tmp_path / "run"
    root.mkdir()
    RunDir(root).checkpoints.symlink_to(small_disk)
    run_ranks(2, save_steps, root, [1, 2, 3], {"keep_last_n_checkpoints": 2})
    assert [event["step"] for event in events(root, Kind.CHECKPOINT)] == [1]
    failures = events(root, Kind.CHECKPOINT_FAILED)
    assert [failure["step"] for failure in failures] == [2, 3]
    assert all("No space left" in failure["reason"] for failure in failures)
    assert run_ranks(2, load_values, root) == [(1, {1.0})] * 2
    assert [path.name for path in small_disk.iterdir() if ".tmp-" in path.name] == []


def save_and_go_on(rank: Rank, background: bool) -> None:
    """Save while training goes on at once with other values."""
    model, optimizer, saver = build(rank, async_save=background)
    train_steps(model, optimizer, 2)
    saver.save(model, optimizer, TrainState(step=2), wait=False)
    step = 2
    while not saver.ready() or step < 5:
        step += 1
        numbered(model, optimizer, step)
    saver.close()


def test_a_background_save_equals_a_blocking_one_though_training_goes_on(tmp_path: Path) -> None:
    def files(root: Path) -> dict[str, bytes]:
        folder = RunDir(root).checkpoints / "step-00000002"
        assert verify(folder) == []
        names = [*folder.glob("model/*"), *folder.glob("optim/*.distcp")]
        return {path.name: path.read_bytes() for path in names}

    for background in (True, False):
        run_ranks(2, save_and_go_on, tmp_path / str(background), background)
    assert files(tmp_path / "True") == files(tmp_path / "False")


def load_and_draw(rank: Rank) -> tuple[list[float], list[float]]:
    """Random numbers drawn after a load and without one."""
    drawn = []
    for load in (True, False):
        model, optimizer, saver = build(rank)
        torch.manual_seed(5)
        if load:
            saver.load_latest(model, optimizer)
        drawn.append(torch.rand(3).tolist())
    return drawn[0], drawn[1]


def test_loading_leaves_random_numbers_alone(tmp_path: Path) -> None:
    run_ranks(2, save_steps, tmp_path, [3], {})
    for after_load, without in run_ranks(2, load_and_draw, tmp_path):
        assert after_load == without


def load_into_other(rank: Rank, changes: dict[str, int]) -> str:
    model = shard(llama(**changes), rank.world_size)
    optimizer = adamw(model)
    try:
        checkpointer(rank).load_latest(model, optimizer)
    except CheckpointError as error:
        return str(error)
    return "loaded"


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"num_hidden_layers": 3}, "tensors only in the model"),
        ({"num_hidden_layers": 1}, "tensors only in the checkpoint"),
        ({"intermediate_size": 48}, "Size mismatch"),
    ],
)
def test_a_checkpoint_of_another_model_is_an_error_and_no_fallback(
    tmp_path: Path, changes: dict[str, int], expected: str
) -> None:
    run_ranks(2, save_steps, tmp_path, [3], {})
    for result in run_ranks(2, load_into_other, tmp_path, changes):
        assert "does not fit" in result
        assert expected in result


def load_twice(rank: Rank) -> list[str]:
    """Load, train away from it, and load again, as a roll-back does."""
    model, optimizer, saver = build(rank)
    saver.load_latest(model, optimizer)
    first = whole_state(model, optimizer)
    numbered(model, optimizer, 77)
    saver.load_latest(model, optimizer)
    return differences(first, whole_state(model, optimizer))


def test_rolling_back_within_a_run_restores_everything(tmp_path: Path) -> None:
    run_ranks(2, save_steps, tmp_path, [3], {})
    assert run_ranks(2, load_twice, tmp_path) == [[], []]
