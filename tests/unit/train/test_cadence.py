"""The automatic checkpoint interval: arithmetic, bounds, and what failures do to it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from submitrain.train.callbacks.autosave import (
    FIRST_S,
    FIRST_STEPS,
    LEAST_INTERFERENCE,
    MOST_AT_RISK_S,
    MOST_SHARE,
    SAVES_APART,
    FailureRate,
    Interval,
    SaveCost,
    first_is_due,
    interval_of,
    median_cost,
    slowdown_s,
)

DAY = 86_400.0
SECONDS = st.floats(min_value=0.001, max_value=1e4)
MTTF = st.floats(min_value=1.0, max_value=1e9)


def test_it_is_youngs_formula_between_its_bounds() -> None:
    interval = interval_of(SaveCost(blocked_s=2.0, save_s=22.0, slowed_s=1.5), 0.5 * DAY)
    assert interval.seconds == pytest.approx(math.sqrt(2 * 3.5 * 0.5 * DAY))
    assert (interval.bound, interval.steps(10.0)) == ("formula", 55)


@pytest.mark.parametrize(
    ("save", "mttf_s", "expected", "bound"),
    [
        (SaveCost(10.0, 100.0), 300 * DAY, MOST_AT_RISK_S - 100.0, "risk"),
        (SaveCost(1.0, 100.0), 60.0, SAVES_APART * 100.0, "cost"),
        (SaveCost(100.0, 100.0), DAY, 900.0, "cost"),
        (SaveCost(900.0, 900.0), DAY, 8100.0, "cost"),
    ],
    ids=["work at risk", "overlap", "a tenth of the time", "a floor over the cap"],
)
def test_bounds(save: SaveCost, mttf_s: float, expected: float, bound: str) -> None:
    mttf_s = mttf_s if bound == "risk" else min(mttf_s, 60.0)
    interval = interval_of(save, mttf_s)
    assert interval.seconds == pytest.approx(expected)
    assert interval.bound == bound


def test_a_save_that_noise_hides_still_costs_something() -> None:
    assert SaveCost(0.0, 50.0).cost_s == 50.0 * LEAST_INTERFERENCE
    assert SaveCost(1.0, 50.0, slowed_s=4.0).cost_s == 5.0
    assert SaveCost(50.0, 50.0).cost_s == 50.0


@pytest.mark.parametrize(
    ("failures", "observed_s", "mttf_s"),
    [
        (0, 0.0, DAY),
        (0, 300 * DAY, DAY),
        (1, DAY, DAY / 2),
        (4, DAY, DAY / 5),
        (1, 99 * DAY, DAY * 99 / 100),
        (1, 0.0, 1.0),
    ],
    ids=["belief", "quiet time is no proof", "as bad again", "often", "long ago", "at once"],
)
def test_a_runs_own_failures_are_added_to_the_belief(
    failures: int, observed_s: float, mttf_s: float
) -> None:
    rate = FailureRate(30 * DAY, 30, failures=failures, observed_s=observed_s)
    assert rate.mttf_s == pytest.approx(mttf_s, rel=1e-4)


@pytest.mark.parametrize(
    ("interval", "step_s", "steps"),
    [
        (Interval(best_s=100.0, least_s=5.0, most_s=1800.0), 10.0, 10),
        (Interval(best_s=104.0, least_s=5.0, most_s=1800.0), 10.0, 10),
        (Interval(best_s=106.0, least_s=5.0, most_s=1800.0), 10.0, 11),
        (Interval(best_s=9000.0, least_s=5.0, most_s=95.0), 10.0, 9),
        (Interval(best_s=12.0, least_s=31.0, most_s=1800.0), 10.0, 4),
        (Interval(best_s=12.0, least_s=5.0, most_s=1800.0), 3600.0, 1),
        (Interval(best_s=12.0, least_s=65.0, most_s=30.0), 10.0, 7),
    ],
    ids=["best", "down", "up", "risk is rounded down", "cost up", "long steps", "cost wins"],
)
def test_it_is_due_at_the_right_step(interval: Interval, step_s: float, steps: int) -> None:
    due = [n for n in range(1, 30) if interval.due(n * step_s, step_s)]
    assert due[0] == steps
    assert due == list(range(steps, 30)), "once due, it stays due"


@given(SECONDS, SECONDS, SECONDS, MTTF)
def test_a_longer_life_or_a_dearer_save_never_saves_more_often(
    blocked_s: float, save_s: float, more_s: float, mttf_s: float
) -> None:
    assume(blocked_s <= save_s)
    save = SaveCost(blocked_s, save_s)
    base = interval_of(save, mttf_s)
    longer, dearer = interval_of(save, mttf_s + more_s), SaveCost(blocked_s + more_s, save_s)
    assert longer.seconds >= base.seconds
    assert interval_of(dearer, mttf_s).seconds >= base.seconds


@given(SECONDS, SECONDS, MTTF, SECONDS)
def test_saves_neither_overlap_nor_take_more_than_their_share(
    blocked_s: float, save_s: float, mttf_s: float, step_s: float
) -> None:
    assume(blocked_s <= save_s)
    save = SaveCost(blocked_s, save_s)
    interval = interval_of(save, mttf_s)
    age_s = step_s
    for _ in range(3):
        if interval.due(age_s, step_s):
            assert age_s >= SAVES_APART * save_s
            assert save.cost_s / (age_s + save.cost_s) <= MOST_SHARE * (1 + 1e-9)
        age_s *= 10
    assert interval.due(max(MOST_AT_RISK_S, interval.seconds), step_s), "work at risk is bounded"


@pytest.mark.parametrize(
    ("beside", "usual", "background_s", "expected"),
    [
        ([1.3, 1.4], [1.0, 1.0, 9.0], 60.0, 0.7),
        ([1.0, 0.9], [1.0], 60.0, 0.0),
        ([9.0], [1.0], 2.0, 2.0),
        ([1.3], [], 60.0, 0.0),
        ([], [1.0], 60.0, 0.0),
    ],
    ids=["slower", "faster by noise", "not all is the save's", "nothing known", "no step beside"],
)
def test_slowdown_is_what_steps_beside_a_save_took_longer(
    beside: Sequence[float], usual: Sequence[float], background_s: float, expected: float
) -> None:
    assert slowdown_s(beside, usual, background_s) == pytest.approx(expected)


def test_a_single_slow_save_decides_nothing() -> None:
    usual = SaveCost(1.0, 5.0, 0.5)
    assert median_cost([usual, SaveCost(90.0, 300.0, 60.0), usual]) == usual


def test_the_first_save_comes_after_some_steps_or_a_minute() -> None:
    assert [first_is_due(steps, 0.1) for steps in (FIRST_STEPS - 1, FIRST_STEPS)] == [False, True]
    assert [first_is_due(1, age_s) for age_s in (FIRST_S - 1, FIRST_S)] == [False, True]
