"""Who hangs, and when that is so: tables for the pure parts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from submitrain.attempts import Action, Cause
from submitrain.config.job import HangConfig
from submitrain.events import Kind
from submitrain.launcher.supervisor.decide import decide
from submitrain.launcher.supervisor.hang import (
    LONGEST_GAP_S,
    Hang,
    RankState,
    Stall,
    WatchedClock,
    find_hang,
    name_by_stacks,
    straggler,
)
from submitrain.launcher.supervisor.hang_watch import FolderWatch
from submitrain.launcher.supervisor.rank_events import StepTimeStats, budget_s
from submitrain.launcher.worker.stacks import Frame, Stack, ended_by_timer, parse_dump
from tests.unit.launcher.test_decide import LIMITS, evidence

HANG = HangConfig()
COLLECTIVE_S = 1800.0


def phase(name: str, t: float, attempt: int = 1) -> dict[str, Any]:
    return {"kind": Kind.PHASE, "attempt": attempt, "t": t, "phase": name}


def step(number: int, t: float, step_s: float, attempt: int = 1) -> dict[str, Any]:
    return {"kind": Kind.STEP, "attempt": attempt, "t": t, "step": number, "step_s": step_s}


def steps(seconds: float, count: int, attempt: int = 1) -> list[dict[str, Any]]:
    """Steps of equal length, one right after the other."""
    return [step(n, n * seconds, seconds, attempt) for n in range(1, count + 1)]


def budget(
    name: str, pace: StepTimeStats, limits: HangConfig = HANG, collective_s: float = 1800
) -> Any:
    return budget_s(name, pace, limits, collective_s=collective_s)


@pytest.mark.parametrize(
    ("events", "expected"),
    [
        ([], 1620.0),
        (steps(0.1, 2), 1620.0),
        (steps(0.1, 50), 60.0),
        (steps(20.0, 50), 100.0),
        (steps(20.0, 50, attempt=1) + steps(0.1, 2, attempt=2), 100.0),
        (
            [
                *(phase("first_step", 0.0), step(1, 900.0, 900.0), phase("step", 900.0)),
                *(step(n, 900.0 + n, 1.0) for n in range(2, 9)),
            ],
            60.0,
        ),
    ],
    ids=["unknown", "too-few", "floor", "slow", "earlier-attempts-count", "first-step-is-apart"],
)
def test_a_steps_budget_is_learned_from_the_run(
    events: list[dict[str, Any]], expected: float
) -> None:
    assert budget("step", StepTimeStats().take(events)) == pytest.approx(expected)


def test_waiting_for_a_slow_peer_is_part_of_a_step() -> None:
    """``step_s`` of rank 0 does not hold the time in which it waited for another rank's data."""
    events = [phase("step", 0.0), *(step(n, n * 30.0, 0.2) for n in range(1, 20))]
    assert budget("step", StepTimeStats().take(events)) == pytest.approx(150.0)


def test_a_pause_for_a_save_is_no_step() -> None:
    events: list[dict[str, Any]] = [phase("step", 0.0), *steps(1.0, 10)]
    events += [phase("save", 10.0), phase("step", 500.0), step(11, 501.0, 1.0)]
    pace = StepTimeStats().take([*events, step(12, 502.0, 1.0)])
    assert budget("step", pace) == 60.0
    assert budget("save", pace) == pytest.approx(5 * 490.0)


@pytest.mark.parametrize(
    ("seen_s", "limits", "expected"),
    [
        (None, HANG, 1620.0),
        (2.0, HANG, 300.0),
        (100.0, HANG, 500.0),
        (2.0, HangConfig(validate_s=30), 30.0),
        (20.0, HangConfig(validate_s=30), 100.0),
        (20.0, HangConfig(validate_s=0), None),
    ],
)
def test_a_validation_may_take_what_the_slowest_took(
    seen_s: float | None, limits: HangConfig, expected: float | None
) -> None:
    seen = [] if seen_s is None else [{"kind": Kind.VALIDATION, "t": 9.0, "val_s": seen_s}]
    assert budget("validate", StepTimeStats().take(seen), limits) == expected


def test_what_an_attempt_did_not_finish_teaches_nothing() -> None:
    events = [phase("step", 0.0), phase("save", 10.0), phase("data", 5000.0, attempt=2)]
    assert "save" not in StepTimeStats().take(events).slowest_s


def test_a_hung_rank_is_named_before_its_peers_give_up() -> None:
    assert budget("validate", StepTimeStats(), collective_s=100) == 90
    assert budget("first_step", StepTimeStats(), collective_s=100) == 90
    assert budget("data", StepTimeStats(), collective_s=100) == 7200, (
        "nobody waits in a collective there"
    )


def test_the_pace_of_a_long_run_is_read_from_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import json

    monkeypatch.setattr("submitrain.launcher.supervisor.rank_events.READ_BYTES", 4000)
    path = tmp_path / "rank00000.jsonl"
    lines = [json.dumps({**one, "v": 1}) for one in [*steps(50.0, 100), *steps(0.1, 100, 2)]]
    path.write_text("\n".join(lines) + "\n")
    pace = StepTimeStats.read(path)
    assert 0 < len(pace.steps_s) < 100
    assert budget("step", pace) == 60
    assert StepTimeStats.read(tmp_path / "missing").step_s is None


def state(rank: int, **changes: Any) -> RankState:
    """A rank that waits in step 12, as long as the others."""
    usual: dict[str, Any] = {
        "host": f"node{rank}",
        "phase": "step",
        "step": 12,
        "progress": (40, 0),
        "stalled_s": 70.0,
        "silent_s": 1.0,
        "late": False,
        "told": False,
    }
    return RankState(rank=rank, **{**usual, **changes})


def find(*states: RankState) -> Hang | None:
    """60 s for a step, 300 s for all else; silence may last 60 s."""
    return find_hang(states, lambda name: 60.0 if name == "step" else 300.0, lambda _: 60.0)


BUSY: dict[str, Any] = {"stalled_s": 1.0, "progress": (41, 0)}
FROZEN: dict[str, Any] = {"stalled_s": 70.0, "silent_s": 70.0, "late": True}


@pytest.mark.parametrize(
    ("states", "culprit"),
    [
        ([state(0), state(1, progress=(39, 0)), state(2)], 1),
        ([state(0, step=13, progress=(1, 0)), state(1), state(2, step=13)], 1),
        ([state(0), state(1), state(2, **FROZEN)], 2),
        ([state(0), state(1, progress=(39, 0)), state(2, **FROZEN)], 2),
        ([state(0), state(1, **{**FROZEN, "silent_s": 20.0}), state(2)], 1),
        ([state(0, told=True), state(1), state(2, progress=(39, 0))], 2),
        ([state(0)], 0),
        ([state(0, **FROZEN)], 0),
        ([state(0, **FROZEN), state(1, phase="import", host="", progress=(0, 0))], 0),
        (
            [
                state(0, phase="save", progress=(41, 7), stalled_s=400),
                state(1, phase="save", progress=(41, 6), stalled_s=400),
            ],
            1,
        ),
    ],
    ids=[
        *("behind", "step-behind", "silent", "silent-counts-more", "late", "told-apart", "alone"),
        *("alone-and-silent", "silent-first", "behind-in-a-save"),
    ],
)
def test_the_culprit_is_the_one_for_which_others_wait(
    states: list[RankState], culprit: int
) -> None:
    hang = find(*states)
    assert hang is not None
    assert (hang.rank, hang.host) == (culprit, f"node{culprit}")


@pytest.mark.parametrize(
    "states",
    [
        [state(0, stalled_s=50), state(1, stalled_s=50)],
        [state(0), state(1, phase="validate", progress=(39, 0), stalled_s=100)],
        [state(0), state(1, progress=(39, 0), stalled_s=3)],
        [state(0), state(1, stalled_s=3)],
        [state(0, **BUSY), state(1, **FROZEN)],
        [state(0, **FROZEN), state(1, **FROZEN)],
        [state(0, told=True, stalled_s=200), state(1, told=True, stalled_s=200)],
        [state(0, told=True, stalled_s=900), state(1, stalled_s=1, silent_s=1)],
    ],
    ids=[
        *("in-budget", "behind-has-more-time", "behind-is-busy", "one-of-equals-is-busy"),
        *("silent-takes-part", "all-silent", "just-finished", "last-one-works"),
    ],
)
def test_nobody_is_blamed_while_it_may_be_well(states: list[RankState]) -> None:
    assert find(*states) is None


def test_all_ranks_silent_for_twice_as_long_is_a_hang_unless_it_is_the_file_system() -> None:
    dead = {**FROZEN, "silent_s": 130.0}
    hang = find(state(0, **dead), state(1, **dead))
    assert hang is not None
    assert hang.everyone
    assert hang.rank is None


def test_processes_that_do_not_leave_are_ended() -> None:
    hang = find(*(state(r, told=True, stalled_s=400, silent_s=400) for r in (0, 1)))
    assert hang is not None
    assert hang.phase == "exit"


@pytest.mark.parametrize(
    ("states", "behind"),
    [
        ([state(0, progress=(39, 0)), state(1, told=True)], 0),
        ([state(0), state(1, told=True)], None),
        ([state(0), state(1, told=True, silent_s=70, late=True)], None),
        ([state(0, **FROZEN), state(1, told=True, silent_s=20, late=True)], 0),
        ([state(0, told=True)], 0),
    ],
    ids=["behind", "equal", "who-gave-up-is-silent", "frozen", "alone"],
)
def test_the_rank_that_gave_up_is_not_to_blame_for_that(
    states: list[RankState], behind: int | None
) -> None:
    found = straggler(states)
    assert (found.rank if found else None) == behind


WAITING = Stack((Frame("/env/site-packages/torch/distributed/distributed_c10d.py", 3, "wait"),))
WORKING = Stack((Frame("/home/me/project/data.py", 7, "read"),))
HOSTS = {0: "node1", 1: "node2", 2: "node3"}


@pytest.mark.parametrize(
    ("stacks", "culprit", "where"),
    [
        ({0: WAITING, 1: WORKING, 2: WAITING}, 1, "/home/me/project/data.py:7"),
        ({0: WAITING, 1: WAITING}, 2, ""),
        ({0: WAITING, 1: WAITING, 2: WAITING}, None, ""),
        ({0: WORKING, 1: WORKING, 2: WORKING}, None, ""),
        ({}, None, ""),
    ],
    ids=["outside", "mute", "all-inside", "none-inside", "no-dumps"],
)
def test_stacks_name_the_rank_that_is_not_in_the_collective(
    stacks: dict[int, Stack], culprit: int | None, where: str
) -> None:
    unknown = Hang(None, "", "step", 12, 70.0, 60.0, "no rank advances")
    hang = name_by_stacks(unknown, stacks, HOSTS)
    assert (hang.rank, hang.where) == (culprit, where)
    assert hang.host == ("" if culprit is None else HOSTS[culprit])


def test_stacks_never_overrule_what_the_heartbeats_say() -> None:
    known = Hang(2, "node3", "step", 12, 70.0, 60.0, "behind")
    assert name_by_stacks(known, {0: WAITING, 1: WORKING, 2: WAITING}, HOSTS).rank == 2


DUMP = """Thread 0x00007f01 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/srv/train/context.py", line 110 in run

Current thread 0x00007f02 (most recent call first):
  File "/usr/lib/python3.11/site-packages/torch/distributed/c10d_logger.py", line 81 in wrapper
  File "/srv/train/step.py", line 62 in agree
"""
SAVING = """Thread 0x00007f03 (most recent call first):
  File "/srv/mine/storage.py", line 9 in write
  File "/srv/train/checkpoint/writing.py", line 98 in write_checkpoint

Thread 0x00007f02 (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 1119 in join
  File "/srv/train/checkpoint/checkpointer.py", line 233 in _join_save
"""


def test_the_main_thread_of_a_dump_is_its_last() -> None:
    stack = parse_dump(DUMP)
    assert stack is not None
    assert stack.in_collective
    assert stack.where == "/srv/train/step.py:62"


def test_while_a_save_lands_its_thread_is_the_one_that_matters() -> None:
    stack = parse_dump(SAVING)
    assert stack is not None
    assert not stack.in_collective
    assert stack.where == "/srv/mine/storage.py:9"


def test_a_file_without_a_dump_says_nothing() -> None:
    assert parse_dump("") is None
    assert parse_dump("Thread 0x1 (most recent call first):\n") is None
    assert not ended_by_timer(DUMP)
    assert ended_by_timer("Timeout (0:00:10)!\n" + DUMP)


def test_time_in_which_nobody_could_look_does_not_count() -> None:
    clock = WatchedClock()
    stall = Stall(clock)
    for now in (0.0, 1.0, 2.0):
        clock.tick(now)
        stall.update("same")
    assert clock.tick(1000.0) == 998.0
    assert stall.update("same") == 2.0 + LONGEST_GAP_S
    assert stall.update("new") == 0.0


@pytest.mark.parametrize(
    ("name", "expected"),
    [("step", 60.0), ("save", 60.0), ("build", 300.0), ("first_step", 300.0), ("import", 1800.0)],
)
def test_a_rank_that_loads_libraries_may_be_silent_for_longer(name: str, expected: float) -> None:
    assert HANG.silence_limit_s(name, heartbeat_s=5.0) == expected


def test_silence_is_at_least_six_heartbeats_and_can_be_turned_off() -> None:
    assert HANG.silence_limit_s("step", heartbeat_s=20.0) == 120.0
    assert HangConfig(silence_s=0).silence_limit_s("step", heartbeat_s=5.0) is None
    assert HangConfig.model_validate({"step_s": "none"}).limit_s("step") is None


def test_a_folder_that_takes_files_is_not_the_culprit(tmp_path: Path) -> None:
    probe = FolderWatch(tmp_path).answers(5.0)
    assert probe is not None
    assert probe.good
    assert list(tmp_path.iterdir()) == []
    probe = FolderWatch(tmp_path / "missing").answers(5.0)
    assert probe is not None
    assert not probe.good


def test_a_hang_is_restarted_and_told_with_rank_node_phase_and_place() -> None:
    hang = Hang(3, "node4", "step", 17, 75.2, 60.0, "no heartbeat", "a.py:7", "attempts/001/stacks")
    decision = decide(evidence(hang=hang), (), None, LIMITS)
    assert (decision.cause, decision.action) == (Cause.HUNG, Action.RESTART)
    assert decision.explanation == (
        "rank 3 (node4) hung in phase step after step 17 for 75 s (budget 60 s) at a.py:7: "
        "no heartbeat; stacks in attempts/001/stacks"
    )


def test_a_cancelled_run_is_not_brought_back_because_it_hung() -> None:
    hang = Hang(3, "node4", "step", 17, 75.2, 60.0, "no heartbeat")
    assert (
        decide(evidence(hang=hang, cancel_requested=True), (), None, LIMITS).cause
        is Cause.CANCELLED
    )
