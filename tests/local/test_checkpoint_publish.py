"""What is published, replaced, pruned and refused, and what a load does and does not touch."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from submitrain.errors import CheckpointError, FencedError
from submitrain.fence import Fence
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.manifest import TrainState, step_of, verify
from submitrain.train.context import RankContext
from tests.checkpoint_models import (
    adamw,
    checkpointer,
    differences,
    llama,
    shard,
    train_steps,
    whole_state,
)
from tests.checkpoint_ranks import Rank, run_ranks
from tests.checkpoint_saves import (
    build,
    flip_bit,
    load_values,
    numbered,
    published_steps,
    save_steps,
    truncate,
)

pytestmark = pytest.mark.ranks


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
    assert run_ranks(2, load_values, tmp_path) == [[6, [6.0]]] * 2


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
    verified = folder / "step-00000003"
    removed = CheckpointFolders(folder, Fence(9)).prune(2, verified=verified, rejected=())
    assert [step_of(path) for path in removed] == [2]


class OvertakenContext(RankContext):
    """A rank that has a successor as soon as it has been told that it has none."""

    def fenced(self) -> bool:
        answer = super().fenced()
        self.run_dir.claim_attempt()
        return answer


def save_with_newer_attempt(rank: Rank, when: str) -> str:
    """Save while another attempt claims the run; says what came of it."""
    if when == "while writing":
        rank = Rank(OvertakenContext(**field_values(rank.context)), rank.group)
    elif rank.index == 0:
        rank.context.run_dir.claim_attempt()
    model, optimizer, saver = build(rank)
    numbered(model, optimizer, 1)
    torch.distributed.barrier()
    saver.save(model, optimizer, TrainState(step=1), wait=False)
    try:
        saver.wait()
    except FencedError as error:
        return str(error)
    return "published"


def field_values(context: RankContext) -> dict[str, Any]:
    return {field.name: getattr(context, field.name) for field in fields(context)}


@pytest.mark.parametrize("when", ["before", "while writing"])
def test_an_attempt_with_a_successor_refuses_to_publish(tmp_path: Path, when: str) -> None:
    results = run_ranks(2, save_with_newer_attempt, tmp_path, when)
    assert all("owns the run folder now" in result for result in results)
    assert list(RunDir(tmp_path).checkpoints.glob("*")) == []


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
    def contents(root: Path) -> dict[str, Any]:
        folder = RunDir(root).checkpoints / "step-00000002"
        assert verify(folder) == []
        # safetensors writes its metadata in no particular order, so tensors are compared
        shards = {path.name: load_file(path) for path in folder.glob("model/*")}
        weights = {(f, n): t.numpy().tobytes() for f, ts in shards.items() for n, t in ts.items()}
        moments = {path.name: path.read_bytes() for path in folder.glob("optim/*.distcp")}
        return {**weights, **moments}

    for background in (True, False):
        run_ranks(2, save_and_go_on, tmp_path / str(background), background)
    assert contents(tmp_path / "True") == contents(tmp_path / "False")


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
