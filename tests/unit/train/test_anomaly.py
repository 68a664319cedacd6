"""What becomes of a step that went wrong: a pure function of what was seen before."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.config.job import ResilienceConfig
from submitrain.train.callbacks.anomaly import (
    AnomalyAction,
    AnomalyHistory,
    AnomalyResult,
    ObservedStep,
    StepSpan,
    check_step,
    robust_z,
)

NAN, INF = math.nan, math.inf
CALM = (2.0, 2.1, 1.9, 2.05, 1.95, 2.0, 2.02, 1.98)


def limits(**changes: Any) -> ResilienceConfig:
    usual = {"anomaly_window_steps": 8, "max_skipped_steps": 2}
    return ResilienceConfig.model_validate({**usual, **changes})


def run(losses: list[float], settings: ResilienceConfig, *, warmup: int = 0) -> list[AnomalyResult]:
    """Judge one loss after the other; step n consumes the positions 4n - 4 to 4n."""
    history, found = AnomalyHistory(), []
    for number, loss in enumerate(losses, start=1):
        span = StepSpan(number, 4 * number - 4, 4 * number)
        norm = NAN if math.isnan(loss) else 1.0
        found.append(
            check_step(history, ObservedStep(span, loss, norm), settings, warmup_steps=warmup)
        )
        history = found[-1].history
    return found


def actions(losses: list[float], **changes: Any) -> str:
    """One letter for each step: applied, warned, skipped, rollback."""
    return "".join(one.action[0] for one in run(losses, limits(**changes)))


@pytest.mark.parametrize("bad", [(NAN, 1.0), (INF, 1.0), (2.0, NAN), (2.0, INF)])
def test_one_step_that_is_not_finite_is_skipped(bad: tuple[float, float]) -> None:
    found = check_step(
        AnomalyHistory(), ObservedStep(StepSpan(7, 24, 28), *bad), limits(), warmup_steps=0
    )
    assert (found.action, found.what) == (AnomalyAction.SKIP, "not_finite")
    assert found.history.left_out == (StepSpan(7, 24, 28),)
    assert found.history.losses == ()


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2, NAN, 2, 2], "asaa"),
        ([2, NAN, NAN, 2], "assa"),
        ([2, NAN, NAN, NAN], "assr"),
        ([NAN, 2, NAN, 2, NAN], "sasar"),
        ([NAN, 2, 2, 2, NAN, 2, 2, 2, NAN], "saaasaaas"),
    ],
)
def test_skips_are_counted_within_a_window(losses: list[float], expected: str) -> None:
    assert actions(losses) == expected


def test_no_skips_allowed_means_a_rollback_at_once() -> None:
    assert actions([2, NAN], max_skipped_steps=0) == "ar"


def test_a_rollback_undoes_the_bad_steps_and_nothing_between_them() -> None:
    last = run([2, NAN, 2, NAN, NAN], limits())[-1]
    assert [span.step for span in last.undone] == [2, 4, 5]
    assert last.skips.windows == ((4, 8), (12, 20))


def test_weights_that_are_not_finite_blame_the_last_update() -> None:
    history = run([2, 2, 2], limits())[-1].history
    seen = ObservedStep(StepSpan(4, 12, 16), NAN, NAN, weights_finite=False)
    found = check_step(history, seen, limits(), warmup_steps=0)
    assert (found.action, found.what) == (AnomalyAction.ROLLBACK, "weights_not_finite")
    assert found.skips.windows == ((8, 16),)


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        ("off", "a" * 14),
        ("warn", "a" * 10 + "w" + "aaa"),
        ("skip", "a" * 10 + "ss" + "r"),
        ("rollback", "a" * 10 + "r"),
    ],
)
def test_three_high_losses_in_a_row_are_a_spike(mode: str, expected: str) -> None:
    got = actions([*CALM, 9, 9, 9, 9, 9, 2], loss_spike=mode)
    assert got[: len(expected)] == expected


def test_a_rollback_for_a_spike_undoes_the_updates_that_were_made_in_it() -> None:
    last = run([*CALM, 9, 9, 9], limits(loss_spike="rollback"))[-1]
    assert last.what == "loss_spike"
    assert [span.step for span in last.undone] == [9, 10, 11]


@pytest.mark.parametrize(
    "losses",
    [
        [*CALM, 9, 9, 2, 9, 9, 2],
        [*CALM, 0.1, 0.1, 0.1, 0.1],
        [*CALM, *(2 - 0.2 * n for n in range(9))],
        [9.0, 9.0, 9.0, *CALM],
        [2.0] * 8 + [2.01] * 6,
        [0.0] * 20,
    ],
    ids=["two-in-a-row", "drop", "falling", "early", "flat-and-noise", "zero"],
)
def test_what_is_no_spike(losses: list[float]) -> None:
    assert set(actions(losses, loss_spike="rollback")) == {"a"}


def test_losses_of_the_warm_up_are_not_the_usual() -> None:
    found = run([9.0] * 5 + [*CALM] + [9.0] * 3, limits(loss_spike="rollback"), warmup=5)
    assert found[-1].action is AnomalyAction.ROLLBACK
    assert found[12].history.losses == CALM


def test_a_flat_curve_has_a_spread_of_one_percent() -> None:
    assert robust_z(2.1, [2.0] * 10) == pytest.approx(5.0)
    assert robust_z(1.9, [2.0] * 10) == pytest.approx(-5.0)


losses = st.lists(
    st.one_of(st.floats(0, 20), st.sampled_from([NAN, 2.0, 40.0])), min_size=1, max_size=40
)
modes = st.sampled_from(["off", "warn", "skip", "rollback"])


@given(losses, modes, st.integers(0, 40))
def test_a_resumed_run_judges_like_the_undisturbed_one(
    values: list[float], mode: str, cut: int
) -> None:
    settings = limits(loss_spike=mode, max_skipped_steps=99)
    whole = run(values, settings)
    history = whole[min(cut, len(whole)) - 1].history if cut else AnomalyHistory()
    assert AnomalyHistory.of({"anomaly": history.text()}) == history
    again, start = AnomalyHistory.of({"anomaly": history.text()}), min(cut, len(values))
    for number in range(start, len(values)):
        span = StepSpan(number + 1, 4 * number, 4 * number + 4)
        norm = NAN if math.isnan(values[number]) else 1.0
        found = check_step(
            again, ObservedStep(span, values[number], norm), settings, warmup_steps=0
        )
        assert found.action is whole[number].action
        again = found.history


@given(losses)
def test_a_falling_or_equal_loss_is_never_a_spike(values: list[float]) -> None:
    falling = sorted((v for v in values if not math.isnan(v)), reverse=True)
    assert set(actions(falling, loss_spike="rollback", loss_spike_steps=1)) <= {"a"}


@pytest.mark.parametrize("text", [None, "", "{}", '{"losses": 3}', "[1]"])
def test_rubbish_is_no_memory(text: object) -> None:
    assert AnomalyHistory.of({"anomaly": text}) == AnomalyHistory()


def test_the_first_suspect_is_the_oldest_step_that_may_have_to_be_undone() -> None:
    assert AnomalyHistory().first_suspect is None
    assert run([2, NAN, 2, NAN], limits())[-1].history.first_suspect == 2
    assert run([*CALM, 9], limits(loss_spike="rollback"))[-1].history.first_suspect == 9
