"""Hangs on this machine: ranks that stop, sleep or hold their lock, and ranks that are slow."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import EXIT_HUNG, Kind
from submitrain.launcher.worker.stacks import ended_by_timer, parse_dump
from tests.local.test_supervise_local import alive, causes
from tests.paths import TESTS
from tests.supervised import CountingRun, counting_run

pytestmark = pytest.mark.ranks

PLAN = {"steps": 40, "step_s": 0.05, "save_every": 5}
BUDGETS = {"silence_s": 4, "step_s": 4}
RESTARTED = [("hung", "restart"), ("finished", "done")]


def hang_of(run: CountingRun) -> dict[str, Any]:
    """What the record of the first attempt says about its hang."""
    hang: dict[str, Any] = run.ends()[0]["evidence"]["hang"]
    return hang


def line_of(text: str) -> str:
    """``programs/counting.py:<line>`` of the only line with ``text``."""
    lines = (TESTS / "programs/counting.py").read_text().splitlines()
    [number] = [number for number, line in enumerate(lines, start=1) if text in line]
    return f"programs/counting.py:{number}"


def test_a_stopped_rank_is_named_and_the_run_goes_on(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=PLAN, tasks=3, resilience={"hang": BUDGETS}) as run:
        run.wait_for_step(12)
        pid = run.rank_pid(1)
        os.kill(pid, signal.SIGSTOP)
        stopped_at = time.time()
        assert run.wait() == 0, run.log
        assert not alive(pid), "KILL ends a stopped process, too"
    assert causes(run) == RESTARTED
    hang = hang_of(run)
    print("found after", round(run.ends()[0]["t"] - stopped_at, 1), "s;", run.ends()[0])
    assert hang["rank"] == 1
    assert "no heartbeat" in run.ends()[0]["explanation"]
    stacks = run.run_dir.root / hang["stacks"]
    assert parse_dump((stacks / "rank00000.txt").read_text()) is not None
    assert parse_dump((stacks / "rank00002.txt").read_text()) is not None
    assert run.events(Kind.RESUME)[1]["step"] >= 10


def test_a_sleeping_rank_is_named_with_its_line(tmp_path: Path) -> None:
    plan = {**PLAN, "fail": {"kind": "hang", "rank": 2, "step": 12}}
    with counting_run(tmp_path / "run", plan=plan, tasks=3, resilience={"hang": BUDGETS}) as run:
        assert run.wait() == 0, run.log
    assert causes(run) == RESTARTED
    hang = hang_of(run)
    assert (hang["rank"], hang["phase"], hang["step"]) == (2, "step", 12)
    assert hang["where"].endswith(line_of("time.sleep(3600)"))
    assert "2 of 3 ranks are further on" in run.ends()[0]["explanation"]


def test_a_rank_that_holds_its_lock_in_c_is_named_with_its_line(tmp_path: Path) -> None:
    plan = {**PLAN, "fail": {"kind": "lock", "rank": 1, "step": 12}}
    with counting_run(tmp_path / "run", plan=plan, resilience={"hang": BUDGETS}) as run:
        assert run.wait() == 0, run.log
    assert causes(run) == RESTARTED
    assert hang_of(run)["rank"] == 1
    here = (TESTS / "programs/counting.py").read_text().splitlines()
    last = max(n for n, line in enumerate(here, start=1) if "pthread_mutex_lock" in line)
    assert hang_of(run)["where"].endswith(f"programs/counting.py:{last}")


def test_the_only_rank_hangs(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=PLAN, tasks=1, resilience={"hang": BUDGETS}) as run:
        run.wait_for_step(6)
        os.kill(run.rank_pid(0), signal.SIGSTOP)
        assert run.wait() == 0, run.log
    assert causes(run) == RESTARTED
    assert hang_of(run)["rank"] == 0


def test_a_thousand_clean_steps_with_slow_parts_are_no_hang(tmp_path: Path) -> None:
    """Budgets that would strike if a slow part were measured against another part's pace."""
    plan = {
        "steps": 1000,
        "step_s": 0.005,
        "first_step_s": 5.0,
        "validate_every": 250,
        "validate_s": 4.0,
        "save_every": 300,
        "save_s": 4.0,
    }
    budgets = {"silence_s": 3, "step_s": 2, "validate_s": 6, "save_s": 6, "first_step_s": 8}
    with counting_run(tmp_path / "run", plan=plan, resilience={"hang": budgets}) as run:
        assert run.wait(240) == 0, run.log
    assert causes(run) == [("finished", "done")]
    assert len(run.events(Kind.STEP)) == 1000


def test_a_supervisor_that_stood_still_blames_nobody(tmp_path: Path) -> None:
    plan = {**PLAN, "steps": 200}
    with counting_run(tmp_path / "run", plan=plan, resilience={"hang": BUDGETS}) as run:
        run.wait_for_step(5)
        pids = [run.rank_pid(0), run.rank_pid(1), run.process.pid if run.process else 0]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        time.sleep(8)  # a suspended job: twice the budget
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        assert run.wait() == 0, run.log
    assert causes(run) == [("finished", "done")]


def test_a_rank_ends_itself_when_its_supervisor_does_nothing(tmp_path: Path) -> None:
    plan = {**PLAN, "fail": {"kind": "hang", "rank": 1, "step": 30}}
    with counting_run(tmp_path / "run", plan=plan, resilience={"hang": BUDGETS}) as run:
        run.wait_for_step(30)
        run.signal(signal.SIGSTOP)
        stat = Path(f"/proc/{run.rank_pid(1)}/stat")
        run.wait_for(lambda: stat.read_text().split()[2] == "Z", timeout_s=60)
        run.signal(signal.SIGCONT)
        assert run.wait() == 0, run.log
    assert causes(run) == RESTARTED
    failure = run.events(Kind.FAILURE, 1)[0]
    assert failure["exception"] == "submitrain.errors.HungError"
    assert failure["where"].endswith(line_of("time.sleep(3600)"))
    assert run.ends()[0]["exit_codes"]["1"] == EXIT_HUNG
    assert hang_of(run)["rank"] == 1
    assert "misbehave" in (run.run_dir.log(1, 1, "err")).read_text()


def test_a_rank_without_its_lock_is_ended_by_the_interpreters_timer(tmp_path: Path) -> None:
    plan = {**PLAN, "fail": {"kind": "lock", "rank": 1, "step": 30}}
    settings: dict[str, Any] = {"resilience": {"hang": BUDGETS}, "distributed": {"timeout_s": 10}}
    with counting_run(tmp_path / "run", plan=plan, **settings) as run:
        run.wait_for_step(30)
        run.signal(signal.SIGSTOP)
        stacks = run.run_dir.stacks(1, 1)
        run.wait_for(lambda: ended_by_timer(stacks.read_text()), timeout_s=40)
        run.signal(signal.SIGCONT)
        assert run.wait() == 0, run.log
    assert causes(run) == RESTARTED
    assert hang_of(run)["rank"] == 1
    assert "interpreter lock" in run.ends()[0]["explanation"]


def test_a_thawed_rank_of_an_old_attempt_ends_at_once(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan={**PLAN, "steps": 10_000}) as run:
        run.wait_for_step(5)
        pid = run.rank_pid(1)
        run.signal(signal.SIGSTOP)
        os.kill(pid, signal.SIGSTOP)
        run.run_dir.claim_attempt()
        time.sleep(11)  # longer than any look of its watchdog
        os.kill(pid, signal.SIGCONT)
        run.wait_for(lambda: Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z", timeout_s=5)
