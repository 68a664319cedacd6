"""Scaling: known parameters come back, and nothing is said that was not measured."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.launcher.sweeps.measure import (
    Measurement,
    SaveCosts,
    Wanted,
    measure,
    read_sharing,
    read_waits,
)
from submitrain.launcher.sweeps.scaling import (
    Curve,
    NodeCount,
    Terms,
    curve_of,
    fit_step_time,
    mean_of,
    t_quantile,
)
from submitrain.run_folder import RunDir
from submitrain.slurm.client import Answer

TOKENS = 8192
HOUR_S = 3600.0


def counts_of(speeds: dict[int, float], terms: Terms | None = None) -> list[NodeCount]:
    """One repeat at each node count."""
    runs = {nodes: [repeat_at(speed)] for nodes, speed in speeds.items()}
    return list(curve_of(runs, terms or Terms("strong")).counts)


def test_24_hours_on_one_node_and_6_on_four_are_perfect() -> None:
    """A widely copied table calls this 0.92."""
    found = counts_of({1: 1 / (24 * HOUR_S), 4: 1 / (6 * HOUR_S), 8: 1 / (3.5 * HOUR_S)})
    assert found[1].efficiency.value == pytest.approx(1.0, abs=1e-12)
    assert found[2].efficiency.value == pytest.approx(0.857, abs=1e-3)


def test_the_formulas_are_those_of_the_textbook() -> None:
    assert counts_of({2: 200.0, 8: 600.0}, Terms("weak"))[1].efficiency.value == 0.75
    last = counts_of({1: 100.0, 2: 190.0, 4: 350.0})[2]
    assert last.marginal is not None and last.marginal.value == pytest.approx(0.8)
    terms = Terms("weak", tokens=1e6, save_every_steps=10, price=2.0, units_per_node=8)
    saves = SaveCosts(1, 3.0, 1.0, 2.0, 10)
    run = Measurement(1, 1.0, 10_000, startup_s=20.0, saves=saves)
    [one] = curve_of({4: [run]}, terms).counts
    assert one.price_per_million_tokens is not None and one.time_to_result_s is not None
    price = pytest.approx(4 * 8 * 2.0 * 1e6 / (3600 * 1e4))
    assert one.price_per_million_tokens.value == price
    assert one.time_to_result_s.value == pytest.approx(20 + 1e6 / 1e4 + 10 * 3)
    assert one.save_share == pytest.approx(3 / (10 * 1 + 3))


def run_events(
    step_s: list[float], *, world: int = 1, save_after: int | None = None, save_s: float = 0.0
) -> Iterator[dict[str, Any]]:
    """What rank 0 records of one attempt; the step after a save takes ``save_s`` longer."""
    t = 1000.0
    yield {"kind": "start", "t": t, "attempt": 1, "world_size": world}
    yield {"kind": "phase", "t": t, "attempt": 1, "phase": "first_step"}
    t += 5.0
    for step, seconds in enumerate(step_s, start=1):
        t += seconds
        total = {"total_tokens": TOKENS * step, "tokens": TOKENS}
        yield {"kind": "step", "t": t, "attempt": 1, "step": step, "loss": 1.0, **total}
        if step == save_after:
            yield {"kind": "phase", "t": t, "attempt": 1, "phase": "save"}
            t += save_s
            done = {"blocked_s": save_s / 2, "save_s": save_s, "bytes": 10, "step": step}
            yield {"kind": "phase", "t": t, "attempt": 1, "phase": "step"}
            yield {"kind": "checkpoint", "t": t, "attempt": 1, **done}


@settings(max_examples=40, deadline=None)
@given(
    compute_s=st.floats(0.2, 5.0),
    share=st.floats(0.05, 0.4),
    seed=st.integers(0, 2**32),
)
def test_a_strong_curve_gives_the_parameters_of_its_model_back(
    compute_s: float, share: float, seed: int
) -> None:
    """step = compute/N + communication, with 3% noise of steps and 0.2% of runs."""
    noise = random.Random(seed)
    comm_s = share * compute_s

    def repeat(nodes: int) -> Measurement:
        mean_s = (compute_s / nodes + comm_s) * noise.gauss(1, 0.002)
        steps = [9 * mean_s] * 20 + [mean_s * noise.gauss(1, 0.03) for _ in range(50)]
        steps += [mean_s] * 10
        wanted = Wanted(world_size=1, warmup=20, until_step=70)
        events = run_events(steps, save_after=70, save_s=3 * mean_s)
        timing = measure(events, wanted, started_at=990.0)
        assert timing.steps == 50
        assert timing.saves is not None
        assert timing.saves.cost_s == pytest.approx(3 * mean_s, rel=0.1)
        return timing

    curve = curve_of({n: [repeat(n) for _ in range(3)] for n in (1, 2, 4, 8)}, Terms("strong"))
    assert curve.fit is not None
    assert curve.fit[0] == pytest.approx(compute_s, rel=0.1)
    assert curve.fit[1] == pytest.approx(comm_s, rel=0.1)
    for one in curve.counts:
        true_step_s = compute_s / one.nodes + comm_s
        assert one.tokens_per_s.value == pytest.approx(TOKENS / true_step_s, rel=0.1)
        efficiency = (compute_s + comm_s) / (one.nodes * true_step_s)
        assert one.efficiency.value == pytest.approx(efficiency, rel=0.1)


def test_nine_of_ten_intervals_and_more_hold_the_true_efficiency() -> None:
    noise = random.Random(4)
    hits = 0
    for _ in range(400):
        runs = {
            nodes: [repeat_at(nodes * 100 * share * noise.gauss(1, 0.02)) for _ in range(3)]
            for nodes, share in ((1, 1.0), (4, 0.8))
        }
        low, high = interval(curve_of(runs, Terms("weak")), 4)
        hits += low <= 0.8 <= high
    assert 0.91 <= hits / 400 <= 0.99


def repeat_at(tokens_per_s: float, **more: Any) -> Measurement:
    return Measurement(1, TOKENS / tokens_per_s, TOKENS, **more)


def interval(curve: Curve, nodes: int) -> tuple[float, float]:
    [one] = [count for count in curve.counts if count.nodes == nodes]
    assert one.efficiency.low is not None and one.efficiency.high is not None
    return one.efficiency.low, one.efficiency.high


def around(value: float, spread: float = 0.002) -> list[Measurement]:
    """Three repeats close to a speed."""
    return [repeat_at(value * (1 + spread * off)) for off in (-1, 0, 1)]


def test_the_knee_is_the_largest_node_count_whose_lower_bounds_are_good_enough() -> None:
    speeds = {1: around(100), 2: around(198), 4: around(384), 8: around(640)}
    found = curve_of(speeds, Terms("strong"))
    assert found.recommended == 4
    assert "8: efficiency 0.80" in found.why[3]
    assert found.why[3].endswith("no: efficiency may be under 0.90")


def test_a_mean_above_the_threshold_is_not_enough_where_repeats_disagree() -> None:
    speeds = {1: around(100), 2: around(188, spread=0.06)}
    found = curve_of(speeds, Terms("strong"))
    assert found.counts[1].efficiency.value > 0.90
    assert found.recommended == 1


def test_little_marginal_gain_rules_a_node_count_out_whose_efficiency_is_fine() -> None:
    speeds = {1: around(100), 4: around(398), 5: around(455)}
    found = curve_of(speeds, Terms("strong"))
    assert found.counts[2].efficiency.at_least(0.90)
    assert found.recommended == 4
    assert "marginal gain may be under 0.70" in found.why[2]


@pytest.mark.parametrize(
    ("repeats", "why"),
    [
        ({}, "nothing was measured"),
        ({2: around(100)}, "one node count says nothing"),
        ({1: around(100), 2: [repeat_at(190.0)]}, "got one for 2 node"),
    ],
)
def test_without_enough_measurements_nothing_is_recommended(
    repeats: dict[int, list[Measurement]], why: str
) -> None:
    found = curve_of(repeats, Terms("weak"))
    assert found.recommended is None
    assert why in found.why[0]


def test_one_repeat_has_no_interval() -> None:
    [one] = curve_of({1: [repeat_at(100.0)]}, Terms("weak")).counts
    assert (one.tokens_per_s.low, one.tokens_per_s.high) == (None, None)


def test_price_and_time_to_result_follow_from_what_was_measured() -> None:
    runs = {2: [repeat_at(v, startup_s=30.0) for v in (990.0, 1000.0, 1010.0)]}
    terms = Terms("weak", {2: 128}, steps=1000, global_batch=64, price=2.0, units_per_node=8)
    [one] = curve_of(runs, terms).counts
    assert one.price_per_million_tokens is not None and one.time_to_result_s is not None
    assert one.price_per_million_tokens.value == pytest.approx(2 * 8 * 2.0 * 1e6 / (3600 * 1000))
    # At twice the batch, half as many steps: the same number of sequences.
    assert one.time_to_result_s.value == pytest.approx(30 + 500 * TOKENS / 1000)
    low = one.price_per_million_tokens.low
    assert low is not None and low < one.price_per_million_tokens.value
    assert curve_of(runs, Terms("weak")).counts[0].price_per_million_tokens is None


def test_students_t_is_the_tabulated_one() -> None:
    assert [t_quantile(n) for n in (1, 2, 4.9, 30)] == [12.706, 4.303, 2.776, 2.042]
    assert t_quantile(120) == pytest.approx(1.980, abs=1e-3)
    mean = mean_of([1.0, 2.0, 3.0]).estimate
    assert (mean.low, mean.high) == (0.0, pytest.approx(4.484, abs=1e-3)), "no negative speed"


def test_a_fit_needs_three_node_counts_and_a_curve_that_falls() -> None:
    assert fit_step_time([(1, 1.0), (2, 0.5)]) is None
    assert fit_step_time([(1, 1.0), (2, 1.5), (4, 2.0)]) is None


def steps_of(timing: Measurement) -> tuple[int, int]:
    return timing.steps, timing.left_out


def test_a_save_and_the_steps_beside_it_are_counted_apart() -> None:
    timing = measure(run_events([1.0] * 20, save_after=10, save_s=4.0), Wanted(warmup=5))
    assert steps_of(timing) == (14, 1)
    assert timing.step_s == pytest.approx(1.0)
    assert timing.saves is not None
    assert timing.saves.cost_s == pytest.approx(4.0)
    assert (timing.saves.blocked_s, timing.saves.bytes) == (2.0, 10)


def test_each_attempt_warms_up_anew_and_another_number_of_ranks_does_not_count() -> None:
    first = list(run_events([1.0] * 12, world=4))
    moved = [{**event, "t": event["t"] + 100, "attempt": 2} for event in run_events([3.0] * 12)]
    small = [{**event, "world_size": 2} if event["kind"] == "start" else event for event in moved]
    again = [{**event, "world_size": 4} if event["kind"] == "start" else event for event in moved]
    wanted = Wanted(world_size=4, warmup=10)
    assert steps_of(measure([*first, *again], wanted)) == (4, 0)
    shrunk = measure([*first, *small], wanted)
    assert steps_of(shrunk) == (2, 2)
    assert shrunk.step_s == pytest.approx(1.0)


def test_a_validation_between_two_steps_is_no_step_time() -> None:
    events = list(run_events([1.0] * 12))
    at = next(i for i, event in enumerate(events) if event.get("step") == 8)
    late = [{**event, "t": event["t"] + 30} for event in events[at + 1 :]]
    phase = {"kind": "phase", "attempt": 1, "phase": "validate", "t": events[at]["t"]}
    timing = measure([*events[: at + 1], phase, *late], Wanted(warmup=2))
    assert steps_of(timing) == (9, 1)
    assert timing.step_s == pytest.approx(1.0)


def test_a_run_that_logs_every_fifth_step_is_measured_by_its_total_of_tokens() -> None:
    events = [e for e in run_events([0.5] * 40) if e["kind"] != "step" or e["step"] % 5 == 0]
    timing = measure(events, Wanted(warmup=10))
    assert timing.tokens_per_s == pytest.approx(TOKENS / 0.5)
    assert timing.step_s == pytest.approx(0.5)


def test_a_run_without_a_warm_step_has_no_speed() -> None:
    timing = measure(run_events([1.0] * 5), Wanted(warmup=10), started_at=990.0)
    assert (timing.tokens_per_s, timing.step_s, timing.saves) == (None, None, None)
    assert timing.startup_s == pytest.approx(16.0), "from the job's start to the first step's end"


def test_waiting_for_another_point_is_not_waiting_in_the_queue(tmp_path: Path) -> None:
    for name, job in (("a", "7"), ("b", "8")):
        (tmp_path / name).mkdir()
        line = {"kind": "submitted", "job_id": job, "cluster": "slurm", "t": 1.0}
        (tmp_path / name / "submissions.jsonl").write_text(json.dumps(line) + "\n")
    asked: list[list[str]] = []

    def sacct(command: Sequence[str], *_: Any, **__: Any) -> Answer:
        asked.append(list(command))
        rows = [
            ("8", "2026-01-01T11:00:00", "2026-01-01T12:00:00"),  # requeued
            ("8", "2026-01-01T10:00:00", "2026-01-01T10:01:30"),
            ("7", "2026-01-01T10:00:00", "Unknown"),
        ]
        return Answer(0, "\n".join("\x1f".join(row) for row in rows), "")

    assert read_waits([tmp_path / "a", tmp_path / "b"], run=sacct) == {"8": 90.0}
    assert "--jobs=7,8" in asked[0]
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("machines", "world", "emulated"),
    [
        ("aaaa", 4, True),
        ("aabb", 4, False),
        ("aa", 2, False),  # one of two nodes was lost: what is left shares nothing
        ("aabbbb", 6, True),
    ],
)
def test_nodes_that_are_one_machine_are_found_out(
    tmp_path: Path, machines: str, world: int, emulated: bool
) -> None:
    (tmp_path / "events").mkdir()
    for rank, machine in enumerate(machines):
        old = {"kind": "start", "t": 1.0, "attempt": 1, "world_size": 8, "machine": "z"}
        new = {**old, "attempt": 2, "world_size": world, "machine": machine}
        text = "".join(json.dumps(line) + "\n" for line in (old, new))
        (tmp_path / "events" / f"rank{rank:05d}.jsonl").write_text(text)
    nodes, found = read_sharing(RunDir(tmp_path), ranks_per_node=2)
    assert Measurement(nodes=nodes, machines=found).emulated is emulated


def test_a_run_that_does_not_say_where_it_ran_is_not_called_emulated(tmp_path: Path) -> None:
    (tmp_path / "events").mkdir()
    line = {"kind": "start", "t": 1.0, "attempt": 1, "world_size": 4}
    (tmp_path / "events" / "rank00000.jsonl").write_text(json.dumps(line) + "\n")
    assert read_sharing(RunDir(tmp_path), ranks_per_node=1)[1] is None
