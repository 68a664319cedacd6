"""Data that is left out: every other unit exactly once, whatever the world size does meanwhile."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.errors import DataError
from submitrain.fence import Fence
from submitrain.rollbacks import (
    Rollback,
    Skips,
    read_rollbacks,
    record_rollback,
    skips_of,
    with_skips,
)
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.loading import find_undone
from submitrain.train.checkpoint.manifest import Manifest, TrainState
from submitrain.train.data.loader import StepParts
from submitrain.train.data.order import UnitOrder, rank_share

windows = st.lists(
    st.tuples(st.integers(0, 120), st.integers(0, 30)).map(lambda w: (w[0], w[0] + w[1])),
    max_size=6,
)


def test_windows_are_merged_and_ordered() -> None:
    merged = Skips.of([(30, 40), (8, 12), (12, 16), (35, 38), (5, 5)])
    assert merged.windows == ((8, 16), (30, 40))
    assert merged.text == "[8, 16), [30, 40)"


@given(windows)
def test_text_is_read_back(given_windows: list[tuple[int, int]]) -> None:
    skips = Skips.of(given_windows)
    assert Skips.parse(skips.text) == skips


@given(windows, st.integers(0, 150), st.integers(0, 60))
def test_ranges_are_what_is_in_no_window(
    given_windows: list[tuple[int, int]], start: int, length: int
) -> None:
    left = [
        p for a, b in Skips.of(given_windows).ranges(start, start + length) for p in range(a, b)
    ]
    inside = {p for a, b in given_windows for p in range(a, b)}
    assert left == [p for p in range(start, start + length) if p not in inside]
    assert Skips.of(given_windows).kept(start, start + length) == len(left)


@given(windows, st.integers(0, 150), st.integers(1, 60))
def test_advance_goes_past_so_many_kept_units_and_no_further(
    given_windows: list[tuple[int, int]], position: int, count: int
) -> None:
    skips = Skips.of(given_windows)
    stop = skips.advance(position, count)
    assert skips.kept(position, stop) == count
    assert skips.kept(position, stop - 1) == count - 1


@given(
    st.integers(1, 60),
    st.integers(1, 16),
    windows,
    st.lists(st.tuples(st.integers(1, 8), st.integers(0, 6)), max_size=6),
)
def test_every_unit_outside_the_windows_is_consumed_once_at_changing_world_sizes(
    count: int,
    total: int,
    given_windows: list[tuple[int, int]],
    attempts: list[tuple[int, int]],
) -> None:
    """Whatever worlds follow each other, over two epochs, as loader and loop do it."""
    skips, end = Skips.of(given_windows), 2 * count
    order = UnitOrder(count, seed=1, shuffle=True, skips=skips)
    position, seen = 0, []
    for world, steps in [*attempts, (3, 2 * count)]:
        accumulation = math.ceil(total / (2 * world))
        parts = list(StepParts(position, end, total, accumulation, skips))
        for part in parts[: steps * accumulation]:
            for rank in range(world):
                share = rank_share(
                    order.units(part.start, part.stop),
                    rank=rank,
                    world_size=world,
                    local_size=2,
                    accumulation=accumulation,
                )
                seen += share[part.number]
            if part.number == 0:
                position = min(skips.advance(position, total), end)
                assert part.stop == position
    inside = {p for a, b in given_windows for p in range(a, b)}
    plain = UnitOrder(count, seed=1, shuffle=True)
    expected = [plain.units(p, p + 1)[0] for p in range(end) if p not in inside]
    assert sorted(seen) == sorted(expected)


ROLLBACK = Rollback(2, "not_finite", 7, 8, ((48, 64),), (3, 5))


def test_a_rollback_is_read_back_and_a_torn_line_is_none(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    assert read_rollbacks(run_dir) == []
    record_rollback(run_dir, ROLLBACK, "7")
    with run_dir.skips.open("a") as file:
        file.write('{"kind":"rollback","attempt":3,"wh')
    assert read_rollbacks(run_dir) == [ROLLBACK]
    later = Rollback(3, "loss_spike", 9, 9, ((60, 72),))
    record_rollback(run_dir, later, "7")
    assert read_rollbacks(run_dir) == [ROLLBACK, later]
    assert skips_of([ROLLBACK, later]).windows == ((48, 72),)


def test_a_rollback_that_cannot_be_recorded_is_an_error(tmp_path: Path) -> None:
    RunDir(tmp_path).skips.mkdir()
    with pytest.raises(IsADirectoryError):
        record_rollback(RunDir(tmp_path), ROLLBACK, "7")


@pytest.mark.parametrize(
    ("step", "attempt", "rejected"),
    [(6, 1, False), (7, 1, True), (7, 2, True), (9, 2, True), (7, 3, False), (6, 2, False)],
)
def test_checkpoints_of_undone_steps_are_rejected(step: int, attempt: int, rejected: bool) -> None:
    assert ROLLBACK.rejects(step=step, attempt=attempt) is rejected


def publish(folders: CheckpointFolders, step: int) -> Path:
    """A checkpoint without tensors, published as rank 0 does it."""
    manifest = Manifest(TrainState(step), folders.attempt, 1, "", "safetensors", False, 0.0, {})
    folders.seal(folders.begin(step), manifest.text())
    return folders.publish(step)


def test_undone_checkpoints_are_found_by_the_attempt_that_made_them(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    for attempt, step in ((1, 6), (2, 7), (2, 8), (3, 9)):
        publish(CheckpointFolders(run_dir.checkpoints, Fence(attempt)), step)
    assert find_undone(run_dir.checkpoints, run_dir) == {}
    record_rollback(run_dir, ROLLBACK, "7")
    found = find_undone(run_dir.checkpoints, run_dir)
    assert sorted(path.name for path in found) == ["step-00000007", "step-00000008"]
    assert "before step 7" in next(iter(found.values()))


def test_pruning_keeps_the_checkpoint_that_a_rollback_would_need(tmp_path: Path) -> None:
    folders = CheckpointFolders(tmp_path / "checkpoints", Fence(1))
    paths = {step: publish(folders, step) for step in (2, 4, 6, 8)}
    folders.prune(1, verified=paths[8], rejected=(), suspect=5)
    assert sorted(path.name for path in folders.root.glob("step-*")) == [
        "step-00000004",
        "step-00000008",
    ]


def test_positions_without_their_record_are_refused() -> None:
    extra = with_skips({"mine": 1}, Skips.of([(48, 64)]))
    assert with_skips(extra, Skips.of([(40, 64), (80, 88)]))["mine"] == 1
    with pytest.raises(
        DataError, match=r"positions \[48, 64\) were left out, the file says nothing"
    ):
        with_skips(extra, Skips())
