"""Whatever is killed, damaged or full: a run resumes from a checkpoint that is whole."""

from __future__ import annotations

import json
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

from submitrain.errors import CheckpointError
from submitrain.events import Kind
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.signals import StopReason, install_handlers
from submitrain.train.checkpoint.manifest import (
    TrainState,
    list_checkpoints,
    newest_verified,
    step_of,
)
from tests.checkpoint_ranks import Rank, run_ranks, start_ranks
from tests.checkpoint_saves import (
    build,
    events,
    flip_bit,
    found_values,
    load_values,
    numbered,
    save_steps,
    truncate,
)

pytestmark = pytest.mark.ranks


def save_forever(rank: Rank, settings: dict[str, Any]) -> None:
    """Resume, write down what was found, then save as fast as possible until killed."""
    model, optimizer, saver = build(rank, **settings)
    loaded = saver.load_latest(model, optimizer)
    found = found_values(loaded, model, optimizer)
    if rank.index == 0:
        write_json_atomically(rank.context.run_dir.root / f"found-{rank.context.attempt}", found)
    for step in range(loaded.step + 1 if loaded else 1, 10**6):
        numbered(model, optimizer, step)
        saver.save(model, optimizer, TrainState(step=step), wait=False)


def test_killed_at_twenty_random_moments_every_resume_is_from_a_whole_checkpoint(
    tmp_path: Path,
) -> None:
    moments = random.Random(0)
    steps, checkpoints = [0], RunDir(tmp_path).checkpoints
    for attempt in range(1, 21):
        world = start_ranks(2, save_forever, tmp_path, {"keep_last_n_checkpoints": 2})
        while not list(checkpoints.glob(f"*.tmp-{attempt}")):
            time.sleep(0.01)
            assert all(process.is_alive() for process in world.processes), world.results()
        time.sleep(moments.uniform(0, 0.4))
        world.kill()
        found = json.loads((tmp_path / f"found-{attempt}").read_text())
        assert found == ([steps[-1], [float(steps[-1])]] if steps[-1] else None)
        newest = newest_verified(checkpoints)
        steps.append(step_of(newest) or 0 if newest else 0)
    assert steps == sorted(steps)
    assert steps[-1] > 0


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
    assert run_ranks(2, load_values, tmp_path) == [[3, [3.0]]] * 2
    [rejection] = events(tmp_path, Kind.CHECKPOINT_REJECTED)
    assert rejection["path"] == str(newest)
    assert path.name in rejection["reason"]


def test_a_stray_weights_file_is_a_reason_to_reject(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [3, 6], {})
    newest = RunDir(tmp_path).checkpoints / "step-00000006"
    [weights] = newest.glob("model/*.safetensors")
    shutil.copy(weights, weights.with_name("shard-00002-model-00001-of-00001.safetensors"))
    assert run_ranks(1, load_values, tmp_path) == [[3, [3.0]]]


def test_when_none_is_whole_the_error_says_what_was_found(tmp_path: Path) -> None:
    run_ranks(1, save_steps, tmp_path, [3, 6], {})
    for path in RunDir(tmp_path).checkpoints.glob("step-*/manifest.json"):
        path.unlink()
    with pytest.raises(AssertionError, match=r"2 checkpoints, none of them whole: step-00000003"):
        run_ranks(1, load_values, tmp_path)


def save_under_signals(rank: Rank) -> StopReason:
    """Save in the background while signals rain on this process."""
    model, optimizer, saver = build(rank)
    install_handlers(rank.context.stop)
    for step in (1, 2, 3):
        numbered(model, optimizer, step)
        saver.save(model, optimizer, TrainState(step=step), wait=False)
        while not saver.ready():
            os.kill(os.getpid(), signal.SIGUSR2)
            os.kill(os.getpid(), signal.SIGTERM)
    saver.close()
    return rank.context.stop.reason


def test_signals_do_not_hurt_a_save_in_the_background(tmp_path: Path) -> None:
    assert run_ranks(2, save_under_signals, tmp_path) == [StopReason.TERMINATED] * 2
    assert events(tmp_path, Kind.CHECKPOINT_FAILED) == []
    assert run_ranks(2, load_values, tmp_path) == [[3, [3.0]]] * 2


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
    assert run_ranks(2, load_values, root) == [[1, [1.0]]] * 2
    assert [path.name for path in small_disk.iterdir() if ".tmp-" in path.name] == []
