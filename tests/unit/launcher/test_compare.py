"""Two runs are compared bit by bit, and a difference is named."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

import pytest

from submitrain.events import EventWriter, Kind
from submitrain.launcher.drill.compare import Comparison, compare_runs, read_curve
from submitrain.run_folder import RunDir

Steps = Iterable[tuple[int, int, float]]
"""(attempt, step, loss)"""


def write_run(folder: Path, steps: Steps, *, worlds: dict[int, int] | None = None) -> Path:
    """A run folder with these steps; two ranks share four samples in each step."""
    run_dir = RunDir(folder)
    run_dir.events_dir.mkdir(parents=True)
    steps = list(steps)
    for attempt in sorted({attempt for attempt, _, _ in steps}):
        world = (worlds or {}).get(attempt, 2)
        writer = EventWriter(run_dir.attempts, -1, attempt, "1")
        writer.write(Kind.ATTEMPT_START, world_size=world)
    for attempt, step, loss in steps:
        writer = EventWriter(run_dir.events(0), 0, attempt, "1")
        numbers = {"loss_hex": loss.hex(), "grad_norm_hex": (loss / 2).hex()}
        writer.write(Kind.STEP, step=step, loss=loss, **numbers)
        for rank in (0, 1):
            ids = [4 * step + rank, 4 * step + 2 + rank]
            writer = EventWriter(run_dir.events(rank), rank, attempt, "1")
            writer.write(Kind.SAMPLES, step=step, ids=ids)
    return folder


CALM = [(1, 1, 3.0), (1, 2, 2.5), (1, 3, 2.25)]
NEXT = math.nextafter(2.5, 3.0)

RUNS: dict[str, tuple[list[tuple[int, int, float]], dict[int, int], Comparison]] = {
    "the same": (CALM, {}, Comparison(3)),
    "the same after a restart": ([*CALM[:2], (2, 2, 2.5), (2, 3, 2.25)], {}, Comparison(3)),
    "one bit": (
        [CALM[0], (1, 2, NEXT), CALM[2]],
        {},
        Comparison(3, different=(2,), largest_relative=(NEXT - 2.5) / NEXT),
    ),
    "too short": (CALM[:2], {}, Comparison(3, missing=(3,))),
    "too long": ([*CALM, (1, 4, 2.0)], {}, Comparison(3, surplus=(4,))),
    "another result when computed again": (
        [*CALM[:2], (2, 2, 2.4), (2, 2, 2.5), (2, 3, 2.25)],
        {},
        Comparison(3, contradictory=(2,)),
    ),
    "not a number": (
        [*CALM[:2], (1, 3, math.nan)],
        {},
        Comparison(3, different=(3,), largest_relative=math.inf),
    ),
    "at another number of ranks": (
        [*CALM[:2], (2, 3, NEXT)],
        {2: 3},
        Comparison(3, rescaled=(3,), largest_relative=(NEXT - 2.25) / NEXT),
    ),
    "nothing": ([], {}, Comparison(3, missing=(1, 2, 3))),
}


@pytest.mark.parametrize("name", RUNS)
def test_a_run_is_compared_with_an_undisturbed_one(tmp_path: Path, name: str) -> None:
    steps, worlds, expected = RUNS[name]
    calm = write_run(tmp_path / "calm", CALM)
    found = compare_runs(write_run(tmp_path / "other", steps, worlds=worlds), calm)
    assert found == expected
    assert found.identical == (expected == Comparison(3))
    assert found.alike == (found.identical or bool(found.rescaled))


def test_other_samples_are_found_also_where_the_numbers_agree(tmp_path: Path) -> None:
    calm = write_run(tmp_path / "calm", CALM)
    other = write_run(tmp_path / "other", CALM)
    swapped = other / "events" / "rank00001.jsonl"
    swapped.write_text(swapped.read_text().replace('"ids":[9,11]', '"ids":[9,12]'))
    assert compare_runs(other, calm).samples == (2,)
    assert not compare_runs(other, calm).identical


def test_which_rank_consumed_a_sample_does_not_matter(tmp_path: Path) -> None:
    calm = write_run(tmp_path / "calm", CALM)
    other = write_run(tmp_path / "other", CALM)
    for rank, before, after in ((0, "[8,10]", "[9,10]"), (1, "[9,11]", "[8,11]")):
        path = RunDir(other).events(rank)
        path.write_text(path.read_text().replace(before, after))
    assert compare_runs(other, calm).identical


def test_a_sentence_names_the_steps_and_the_size_of_the_difference() -> None:
    differing = Comparison(30, different=tuple(range(3, 12)), largest_relative=2.5e-7)
    assert differing.text == (
        "other numbers in steps 3, 4, 5, 6, 7, 8 and 3 more; largest relative difference 2.5e-07"
    )
    assert Comparison(30).text == "identical in all 30 steps, bit for bit"
    assert not Comparison(0).identical
    assert Comparison(0).text == "there is nothing to compare with"


def test_repetitions_are_counted_and_the_last_one_holds(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", [*CALM, (2, 2, 2.5), (2, 3, 2.25), (2, 4, 1.0)])
    curve = read_curve(run)
    assert (len(curve.steps), curve.recomputed, curve.contradictory) == (4, 2, ())
