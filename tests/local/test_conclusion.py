"""What follows a run's end: its report and the user's hooks; neither changes how it ended."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from submitrain.config import RunConfig
from submitrain.events import read_events
from submitrain.launcher.supervisor.after_run import (
    Hook,
    follow_up,
    hook_for,
    hook_variables,
    run_hook,
)
from submitrain.run_folder import RunDir
from tests.supervised import counting_run

SUMMARY = {"state": "failed", "cause": "program_error", "explanation": "x; $(y)", "step": 3}
WITH_HOOKS = RunConfig(on_success="echo yes", on_failure="echo no", hook_timeout_s=7)


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("finished", Hook("on_success", "echo yes", 7)),
        ("failed", Hook("on_failure", "echo no", 7)),
        ("stopped", None),
        ("cancelled", None),
        ("requeued", None),
    ],
)
def test_which_hook_follows_which_end(state: str, expected: Hook | None) -> None:
    assert hook_for(WITH_HOOKS, state) == expected
    assert hook_for(RunConfig(), state) is None


def test_a_hook_finds_the_run_in_its_environment_and_its_outcome_is_recorded(
    tmp_path: Path,
) -> None:
    run_dir = RunDir(tmp_path)
    command = "env | grep ^SUBMITRAIN_ | sort; pwd; exit 3"
    variables = hook_variables(run_dir, SUMMARY, tmp_path / "reports/report.html")
    before = dict(os.environ)
    outcome = run_hook(run_dir, Hook("on_failure", command, 30), variables)
    assert dict(os.environ) == before
    assert (outcome["code"], outcome["timed_out"]) == (3, False)
    lines = (run_dir.reports / "on_failure.log").read_text().splitlines()
    assert f"SUBMITRAIN_RUN_DIR={tmp_path}" in lines
    assert f"SUBMITRAIN_REPORT={tmp_path}/reports/report.html" in lines
    assert "SUBMITRAIN_STATE=failed" in lines
    assert "SUBMITRAIN_CAUSE=program_error" in lines
    assert "SUBMITRAIN_EXPLANATION=x; $(y)" in lines
    assert lines[-1] == str(tmp_path)
    [event] = read_events(run_dir.reports / "hooks.jsonl")
    assert (event["hook"], event["state"], event["code"]) == ("on_failure", "failed", 3)


def test_a_hook_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    run_dir = RunDir(tmp_path)
    command = f"sleep 600 & echo $! > {tmp_path}/child; wait"
    outcome = run_hook(run_dir, Hook("on_failure", command, 1), {"SUBMITRAIN_STATE": "failed"})
    assert outcome["timed_out"] is True
    assert outcome["code"] != 0
    child = Path("/proc") / (tmp_path / "child").read_text().strip() / "stat"
    deadline = time.monotonic() + 20
    while child.exists() and child.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the hook's child lives on"
        time.sleep(0.05)


def test_neither_an_unwritable_report_nor_a_hook_raises(tmp_path: Path) -> None:
    (tmp_path / "reports").write_text("a file where the folder should be")
    follow_up(RunDir(tmp_path), WITH_HOOKS, SUMMARY)
    assert (tmp_path / "reports").is_file()


@pytest.mark.ranks
def test_a_finished_and_a_failed_run_leave_a_report_and_their_hook_runs(tmp_path: Path) -> None:
    hooks = {"on_success": "echo good $SUBMITRAIN_STATE", "on_failure": "echo bad; exit 9"}
    quick = {"steps": 5, "step_s": 0.05}
    with counting_run(tmp_path / "good", plan=quick, top=hooks) as run:
        assert run.wait() == 0, run.log
    assert run.summary["state"] == "finished"
    assert (run.run_dir.reports / "on_success.log").read_text() == "good finished\n"
    assert "finished at step 5" in (run.run_dir.reports / "report.html").read_text()
    failing = {**quick, "fail": {"kind": "error", "rank": 1, "step": 3}}
    with counting_run(tmp_path / "bad", plan=failing, top=hooks) as run:
        assert run.wait() != 0
    assert run.summary["state"] == "failed"
    assert run.summary["cause"] == "program_error"
    assert [event["code"] for event in read_events(run.run_dir.reports / "hooks.jsonl")] == [9]
    page = (run.run_dir.reports / "report.html").read_text()
    assert "the fault is in this line" in page
    assert "python_exception" in page


@pytest.mark.ranks
def test_a_run_that_is_left_to_go_on_later_gets_no_report(tmp_path: Path) -> None:
    plan = {"steps": 10_000, "step_s": 0.05}
    with counting_run(tmp_path / "run", plan=plan, top={"on_failure": "echo bad"}) as run:
        run.wait_for_step(3)
        run.signal(signal.SIGTERM)
        run.wait()
    assert not (run.run_dir.reports / "hooks.jsonl").exists()
    assert run.run_dir.reports.exists() is run.run_dir.summary.exists()
