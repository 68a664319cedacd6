"""The supervisor on this machine, with real rank processes."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from submitrain.events import EXIT_FENCED, Kind
from submitrain.processes import ProcessRef
from submitrain.run_folder import write_json_atomically
from tests.paths import TESTS
from tests.supervised import CountingRun, counting_run

pytestmark = pytest.mark.ranks

QUICK = {"steps": 10, "step_s": 0.05}
LONG = {"steps": 10_000, "step_s": 0.05, "save_every": 5}


def alive(pid: int) -> bool:
    return ProcessRef.of(pid) is not None


def causes(run: CountingRun) -> list[tuple[str, str]]:
    return [(end["cause"], end["action"]) for end in run.ends()]


def test_a_run_in_which_every_rank_finishes_is_done(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=QUICK, nodes=2, tasks=2) as run:
        assert run.wait() == 0, run.log
    assert causes(run) == [("finished", "done")]
    assert run.summary["state"] == "finished"
    assert run.summary["step"] == 10
    assert run.summary["goodput"]["rank_seconds"]["spare"] == 0
    assert '"state": "finished"' in run.log.split("RESULT")[1]


def test_a_killed_rank_is_restarted_in_place_and_the_run_finishes(tmp_path: Path) -> None:
    plan = {**QUICK, "steps": 60, "save_every": 5}
    with counting_run(tmp_path / "run", plan=plan) as run:
        run.wait_for_step(12)
        os.kill(run.rank_pid(1), signal.SIGKILL)
        assert run.wait() == 0, run.log
    assert causes(run) == [("rank_died", "restart"), ("finished", "done")]
    assert "rank 1" in run.ends()[0]["explanation"]
    assert "SIGKILL" in run.ends()[0]["explanation"]
    assert run.events(Kind.RESUME)[1]["step"] >= 10


def test_an_exception_of_the_program_stops_the_run_at_once(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "error", "rank": 1, "step": 3}}
    with counting_run(tmp_path / "run", plan=plan) as run:
        assert run.wait() != 0
    assert causes(run) == [("program_error", "stop")]
    line = next(
        number
        for number, text in enumerate(
            (TESTS / "programs/counting.py").read_text().splitlines(), start=1
        )
        if "the fault is in this line" in text
    )
    explanation = run.summary["explanation"]
    assert f"programs/counting.py:{line}" in explanation
    assert "rank 1" in explanation


def test_the_log_of_the_failing_rank_is_shown(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "error", "rank": 1, "step": 3}}
    with counting_run(tmp_path / "run", plan=plan) as run:
        run.wait()
    assert "ValueError: the fault is in this line" in run.ends()[0]["log_tail"][-1]


def test_wrong_input_stops_the_run_as_the_users_error(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "user", "rank": 0, "step": 0}}
    with counting_run(tmp_path / "run", plan=plan) as run:
        assert run.wait() != 0
    assert causes(run) == [("user_error", "stop")]


def test_attempts_without_a_new_step_are_a_crash_loop(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "kill", "rank": 1, "step": 4, "attempts": [1, 2, 3, 4, 5]}}
    with counting_run(tmp_path / "run", plan=plan) as run:
        assert run.wait() != 0
    # The first attempt reached step 4 for the first time: three more showed nothing new.
    assert [cause for cause, _ in causes(run)] == ["rank_died"] * 3 + ["crash_loop"]
    assert run.summary["state"] == "failed"


def test_a_rank_that_leaves_with_code_0_but_no_finish_is_no_success(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "vanish", "rank": 0, "step": 4}, "peer_timeout_s": 1}
    with counting_run(tmp_path / "run", plan=plan) as run:
        assert run.wait() == 0, run.log
    assert causes(run) == [("rank_died", "restart"), ("finished", "done")]


def test_only_victims_means_that_the_network_failed(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "victim", "rank": 1, "step": 4}, "peer_timeout_s": 1}
    with counting_run(tmp_path / "run", plan=plan) as run:
        assert run.wait() == 0, run.log
    assert causes(run) == [("rank_died", "restart"), ("finished", "done")]


def test_term_saves_and_leaves_a_run_that_goes_on_later(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(7)
        run.signal(signal.SIGTERM)
        assert run.wait() != 0
        assert causes(run) == [("terminated", "stop")]
        assert run.summary["state"] == "stopped"
        assert run.saved_step == run.events(Kind.STOPPED)[0]["step"]
        run.start()
        run.wait_for(lambda: len(run.events(Kind.RESUME)) > 1)
        assert run.events(Kind.RESUME)[1]["step"] == run.saved_step
        assert not run.run_dir.summary.exists()


def test_a_cancelled_run_saves_and_is_never_restarted(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(3)
        write_json_atomically(run.run_dir.cancel_request, {"by": "test"})
        assert run.wait() != 0
    assert causes(run) == [("cancelled", "stop")]
    assert run.summary["state"] == "cancelled"
    assert run.events(Kind.STOPPED)


def test_a_cancel_request_before_the_start_starts_nothing(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(1)
        write_json_atomically(run.run_dir.cancel_request, {"by": "test"})
        run.wait()
        run.start()
        assert run.wait() != 0
    assert run.run_dir.newest_attempt() == 1
    assert run.summary["state"] == "cancelled"


def test_the_time_limit_of_a_local_run_starts_a_new_stretch(tmp_path: Path) -> None:
    plan = {"steps": 60, "step_s": 0.1}
    settings = {"slurm": {"time": "5s"}, "resilience": {"stop_lead_s": 2}}
    with counting_run(tmp_path / "run", plan=plan, **settings) as run:
        assert run.wait() == 0, run.log
    found = causes(run)
    assert found[-1] == ("finished", "done")
    assert set(found[:-1]) == {("time_limit", "requeue")}
    steps = [event["step"] for event in run.events(Kind.STEP)]
    assert steps == list(range(1, 61))


def test_ranks_that_do_not_stop_are_killed_before_the_limit(tmp_path: Path) -> None:
    plan = {"steps": 50, "step_s": 0.1, "fail": {"kind": "hang", "rank": 1, "step": 5}}
    settings = {"slurm": {"time": "6s"}, "resilience": {"stop_lead_s": 3}}
    with counting_run(tmp_path / "run", plan=plan, **settings) as run:
        run.wait_for(lambda: len(run.ends()) == 1)
        end = run.ends()[0]
        assert (end["cause"], end["action"]) == ("time_limit", "requeue")
        assert "not every rank confirmed" in end["explanation"]


def test_ranks_die_with_their_supervisor(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(3)
        pids = [run.rank_pid(0), run.rank_pid(1)]
        run.signal(signal.SIGKILL)
        run.wait()
        run.wait_for(lambda: not any(alive(pid) for pid in pids), timeout_s=5)


def test_a_lost_supervisor_is_recorded_by_its_successor(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(6)
        run.signal(signal.SIGKILL)
        run.wait()
        run.start()
        run.wait_for(lambda: len(run.ends()) == 1)
    end = run.ends()[0]
    assert end["cause"] == "lost"
    assert end["last_step"] >= 6


def test_a_supervisor_with_a_newer_rival_ends_its_ranks(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=LONG) as run:
        run.wait_for_step(3)
        pids = [run.rank_pid(0), run.rank_pid(1)]
        run.run_dir.claim_attempt()
        assert run.wait() != 0
        assert not any(alive(pid) for pid in pids)
    assert run.process is not None
    assert run.process.returncode == EXIT_FENCED
    assert causes(run) == [], "a fenced supervisor writes nothing any more"
    assert not run.run_dir.summary.exists()


def test_stacks_of_a_rank_can_be_dumped_while_it_hangs(tmp_path: Path) -> None:
    plan = {**LONG, "fail": {"kind": "hang", "rank": 1, "step": 2}}
    with counting_run(tmp_path / "run", plan=plan) as run:
        run.wait_for(lambda: any(event["step"] == 2 for event in run.events(Kind.HEARTBEAT, 1)))
        os.kill(run.rank_pid(1), signal.SIGUSR1)
        stacks = run.run_dir.attempt_dir(1) / "stacks/rank00001.txt"
        run.wait_for(lambda: "misbehave" in stacks.read_text())


def test_a_warned_rank_takes_all_ranks_to_the_same_step(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan={**LONG, "steps": 100}, nodes=2, tasks=1) as run:
        run.wait_for_step(3)
        os.kill(run.rank_pid(1), signal.SIGUSR2)
        assert run.wait() == 0
    first, second = (run.events(Kind.STOPPED, rank)[0] for rank in (0, 1))
    assert first["step"] == second["step"]
    assert causes(run)[0] == ("time_limit", "requeue")


def test_restarts_are_limited_by_their_budget(tmp_path: Path) -> None:
    plan = {**QUICK, "fail": {"kind": "kill", "rank": 0, "step": 2}, "steps": 40}
    with counting_run(tmp_path / "run", plan=plan, resilience={"max_restarts": 0}) as run:
        assert run.wait() != 0
    assert causes(run) == [("rank_died", "stop")]
    assert "max_restarts (0) is spent" in run.summary["explanation"]


def test_a_missing_secret_is_named_before_anything_starts(tmp_path: Path) -> None:
    settings = {"slurm": {"hf_token": "${SURELY_NOT_SET_TOKEN}"}}
    with counting_run(tmp_path / "run", plan=QUICK, **settings) as run:
        assert run.wait() != 0
    assert "SURELY_NOT_SET_TOKEN" in run.summary["explanation"]
    assert run.run_dir.newest_attempt() == 0


def test_no_rank_is_left_when_the_run_has_ended(tmp_path: Path) -> None:
    with counting_run(tmp_path / "run", plan=QUICK) as run:
        run.wait()
        time.sleep(0.1)
        assert not any(alive(run.rank_pid(rank)) for rank in (0, 1))
