"""Where a recovery's time went, told from the records of supervisor and rank 0."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from submitrain.attempts import read_attempts
from submitrain.launcher.drill.compare import PARTS, read_recoveries
from submitrain.run_folder import RunDir


def write(path: Path, *events: tuple[float, str, int, dict[str, Any]]) -> None:
    """Append events (t, kind, attempt, fields)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        for t, kind, attempt, fields in events:
            file.write(json.dumps({"kind": kind, "t": t, "attempt": attempt, **fields}) + "\n")


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run whose rank died at 100.0, in step 8; step 5 was saved."""
    run_dir = RunDir(tmp_path)
    died = {"cause": "rank_died", "action": "restart", "explanation": "rank 1: SIGKILL"}
    write(
        run_dir.attempts,
        (80.0, "attempt_start", 1, {"world_size": 2}),
        (102.5, "attempt_end", 1, {**died, "noticed_at": 100.2, "first_step": 0, "last_step": 7}),
        (102.6, "attempt_start", 2, {"world_size": 2}),
        (140.0, "attempt_end", 2, {"cause": "finished", "action": "done", "last_step": 20}),
    )
    write(
        run_dir.events(0),
        (83.0, "step", 1, {"step": 1}),
        (103.0, "start", 2, {}),
        (103.01, "phase", 2, {"phase": "import"}),
        (105.0, "phase", 2, {"phase": "rendezvous"}),
        (105.2, "phase", 2, {"phase": "data"}),
        (105.3, "phase", 2, {"phase": "build"}),
        (106.3, "phase", 2, {"phase": "load"}),
        (106.8, "resume", 2, {"step": 5}),
        (107.0, "phase", 2, {"phase": "first_step"}),
        (107.5, "step", 2, {"step": 6}),
        (107.6, "step", 2, {"step": 7}),
    )
    return tmp_path


def test_the_parts_of_a_recovery_add_up_to_it(run: Path) -> None:
    (recovery,) = read_recoveries(run, faults=[99.9])
    assert recovery.seconds == pytest.approx(
        {
            "noticed": 0.3,
            "ended": 2.3,
            "restarted": 0.1,
            "spawned": 0.4,
            "imports": 2.0,
            "rendezvous": 0.2,
            "data": 0.1,
            "build": 1.0,
            "load": 0.7,
            "first_step": 0.5,
        }
    )
    assert list(recovery.seconds) == list(PARTS)
    assert recovery.total_s == pytest.approx(sum(recovery.seconds.values())) == pytest.approx(7.6)
    assert (recovery.cause, recovery.action) == ("rank_died", "restart")
    assert (recovery.reached, recovery.resumed, recovery.lost_steps) == (7, 5, 2)


def test_without_the_time_of_the_fault_it_begins_when_it_was_noticed(run: Path) -> None:
    (recovery,) = read_recoveries(run)
    assert recovery.began == 100.2
    assert recovery.seconds["noticed"] == 0.0
    (same,) = read_recoveries(run, faults=[20.0, 130.0])
    assert same == recovery, "times outside the attempt belong to other interruptions"


def test_an_attempt_without_a_step_is_part_of_the_recovery(run: Path) -> None:
    path = RunDir(run).attempts
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    write(
        path,
        (110.0, "attempt_end", 2, {"cause": "rank_died", "action": "restart", "last_step": 7}),
        (111.0, "attempt_start", 3, {"world_size": 2}),
        (113.0, "attempt_end", 3, {"cause": "rank_died", "action": "restart", "last_step": None}),
        (114.0, "attempt_start", 4, {"world_size": 2}),
    )
    write(RunDir(run).events(0), (115.0, "start", 4, {}), (118.0, "step", 4, {"step": 8}))
    recoveries = read_recoveries(run)
    assert [one.attempt for one in recoveries] == [1, 2, 3]
    assert recoveries[1].total_s == pytest.approx(8.0)
    assert recoveries[1].seconds["restarted"] == pytest.approx(4.0)
    assert recoveries[1].seconds["imports"] == pytest.approx(3.0), "no phases: one part to the step"


def test_an_attempt_that_nobody_followed_has_no_recovery(run: Path) -> None:
    stories = read_attempts(RunDir(run))
    assert [(story.number, story.cause, story.last_step) for story in stories] == [
        (1, "rank_died", 7),
        (2, "finished", 20),
    ]
    assert [one.attempt for one in read_recoveries(run)] == [1]
