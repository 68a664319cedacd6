"""A step and a save fit before the limit, or somebody is told; by arithmetic alone."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.config import RunConfig
from submitrain.launcher.plan.deadlines import (
    LAST_CALL_S,
    Fit,
    deadline_problems,
    deadline_warnings,
    lead_of,
    least_lead_s,
)

GB = 10**9
SECONDS = st.floats(min_value=0.01, max_value=5000)


def config(**sections: Any) -> RunConfig:
    """A configuration of one node and an hour."""
    slurm = {"nodes": 1, "time": "1h", **sections.pop("slurm", {})}
    return RunConfig.model_validate({"slurm": slurm, **sections})


@given(SECONDS, SECONDS)
def test_the_least_lead_holds_a_step_and_a_save_before_the_kill(
    step_s: float, save_s: float
) -> None:
    lead = least_lead_s(step_s=step_s, save_s=save_s)
    assert lead - min(LAST_CALL_S, lead / 3) == pytest.approx(step_s + save_s)


@pytest.mark.parametrize(
    ("configured", "limit_s", "save_s", "seconds", "fit"),
    [
        (60, 3600, None, 60, Fit.FITS),
        (60, 3600, 40, 60, Fit.FITS),
        (60, 3600, 100, 120, Fit.RAISED),
        (60, 200, 100, 60, Fit.LIMIT_TOO_SHORT),
        (None, 3600, 100, 230, Fit.FITS),
        (None, 400, 100, 120, Fit.RAISED),
        (None, 200, 100, 50, Fit.LIMIT_TOO_SHORT),
    ],
)
def test_a_measured_save_raises_the_lead_unless_the_limit_is_too_short(
    configured: int | None, limit_s: float, save_s: float | None, seconds: float, fit: Fit
) -> None:
    found = lead_of(
        configured=configured, limit_s=limit_s, step_s=10, save_s=save_s, unmeasured_s=60
    )
    assert (found.seconds, found.fit) == (seconds, fit)
    assert bool(found.why) == (fit is not Fit.FITS)


@pytest.mark.parametrize(
    ("sections", "size", "key"),
    [
        ({"resilience": {"stop_lead_s": 60}}, 84 * GB, "resilience.stop_lead_s: expected at least"),
        ({"slurm": {"time": "1m"}}, 84 * GB, "slurm.time: expected at least 00:01:45"),
        ({"slurm": {"signal_lead_s": 30}}, 84 * GB, "slurm.signal_lead_s: expected at least 53"),
    ],
)
def test_what_cannot_fit_is_refused_with_the_arithmetic(
    sections: dict[str, Any], size: int, key: str
) -> None:
    (problem,) = deadline_problems(config(**sections), size)
    assert problem.startswith(key)
    assert "84.0 GB / (1 nodes x" in problem


@pytest.mark.parametrize(
    ("sections", "size"),
    [
        ({}, 84 * GB),
        ({"resilience": {"stop_lead_s": 5}}, GB // 100),
        ({"slurm": {"time": "1m"}}, None),
        ({"slurm": {"time": "1m"}, "checkpoint": {"enabled": False}}, 84 * GB),
        ({"slurm": {"time": "1m", "nodes": 16}}, 84 * GB),
    ],
)
def test_what_may_fit_is_not_refused(sections: dict[str, Any], size: int | None) -> None:
    assert list(deadline_problems(config(**sections), size)) == []


def test_a_kill_wait_that_the_cluster_does_not_grant_is_told() -> None:
    found = list(deadline_warnings(config(resilience={"kill_wait_s": 90}), None, 30))
    assert len(found) == 1
    assert "KillWait" in found[0]


def test_a_save_longer_than_the_kill_wait_is_told() -> None:
    found = list(deadline_warnings(config(), 84 * GB, 30))
    assert "ranks have 30 s after TERM" in found[0]
    assert "slurm.signal_lead_s (120)" in found[1]
