"""What is concluded from a run folder and a job's state: every end needs the folder's word."""

from __future__ import annotations

import os
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import append_line, read_tail
from submitrain.processes import ProcessRef
from submitrain.rollbacks import Rollback, record_rollback
from submitrain.run_facts import list_checkpoint_steps, read_evidence
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.status import JobState, JobView, RunState, RunStatus, status_of

RUNNING, PENDING = JobView(JobState.RUNNING), JobView(JobState.PENDING, "Priority")
ENDED, UNKNOWN = JobView(JobState.ENDED, "CANCELLED"), JobView(JobState.UNKNOWN, "no answer")


@pytest.fixture
def run_dir(tmp_path: Path) -> RunDir:
    """A run folder right after its submission."""
    run_dir = RunDir(tmp_path / "toy-20260101T000000-0a1b2c3d")
    run_dir.events_dir.mkdir(parents=True)
    record = {"cluster": "slurm", "total_steps": 10}
    write_json_atomically(run_dir.record, record)
    say(run_dir.submissions, "submitted", attempt=0, job_id="17", cluster="slurm")
    return run_dir


def say(path: Path, kind: str, **fields: Any) -> None:
    """Append one event as a writer of a run folder would."""
    append_line(path, {"v": 1, "kind": kind, "t": 1000.0, "rank": 0, "job_id": "17", **fields})


def begin_attempt(run_dir: RunDir, world_size: int = 2) -> int:
    """Claim and announce the next attempt."""
    attempt = run_dir.claim_attempt()
    say(run_dir.attempts, "attempt_start", attempt=attempt, world_size=world_size)
    return attempt


def step(run_dir: RunDir, number: int, *, attempt: int = 1, **fields: Any) -> None:
    """One step event of rank 0."""
    numbers = {"loss": 2.0, "lr": 1e-3, "tokens_per_s": 50.0, "step_s": 0.5, **fields}
    say(run_dir.events(0), "step", attempt=attempt, step=number, **numbers)


def status(run_dir: RunDir, job: JobView) -> RunStatus:
    """Read and conclude."""
    return status_of(read_evidence(run_dir.root), job)


def test_a_pending_job_is_queued_with_the_schedulers_reason(run_dir: RunDir) -> None:
    found = status(run_dir, PENDING)
    assert (found.state, found.why) == (RunState.QUEUED, "Priority: other jobs go first")


def test_a_running_job_without_steps_is_starting_and_names_its_phase(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    say(run_dir.events(0), "phase", attempt=1, phase="data", step=0)
    found = status(run_dir, RUNNING)
    assert (found.state, found.why) == (RunState.STARTING, "data")


def test_a_run_with_steps_reports_its_numbers_and_the_time_left(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    for number in (1, 2, 3, 4):
        step(run_dir, number, loss=4.0 / number)
    say(run_dir.events(0), "validation", attempt=1, step=4, loss=1.5)
    found = status(run_dir, RUNNING)
    assert (found.state, found.step, found.total_steps) == (RunState.RUNNING, 4, 10)
    assert (found.loss, found.validation_loss, found.eta_s) == (1.0, 1.5, 3.0)


def test_the_automatic_interval_is_that_of_the_newest_heartbeat(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    assert status(run_dir, RUNNING).ckpt_interval_s is None
    for seconds in (900.0, 600.0):
        say(run_dir.events(0), "heartbeat", attempt=1, step=3, ckpt_interval_s=seconds)
    step(run_dir, 4)
    assert status(run_dir, RUNNING).ckpt_interval_s == 600.0


def test_skipped_steps_and_rollbacks_are_counted_as_they_ended(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    for number in (2, 5):
        say(run_dir.events(0), "anomaly", attempt=1, step=number, action="skipped")
    say(run_dir.events(0), "anomaly", attempt=1, step=6, action="rollback")
    record_rollback(run_dir, Rollback(1, "not_finite", 5, 6, ((16, 24),)), "17")
    step(run_dir, 5, attempt=2)
    found = status(run_dir, RUNNING)
    assert (found.skipped_steps, found.rollbacks) == (1, 1)


def test_old_steps_do_not_make_a_resubmitted_run_look_running(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    step(run_dir, 5)
    say(run_dir.submissions, "submitted", attempt=1, job_id="18", cluster="slurm")
    found = status(run_dir, RUNNING)
    assert (found.state, found.step, found.job_ids) == (RunState.STARTING, 5, ("17", "18"))


@pytest.mark.parametrize("state", ["finished", "failed", "cancelled", "stopped"])
@pytest.mark.parametrize("job", [RUNNING, ENDED, UNKNOWN], ids=["running", "ended", "unknown"])
def test_the_supervisors_summary_decides_whatever_the_scheduler_says(
    run_dir: RunDir, state: str, job: JobView
) -> None:
    write_json_atomically(run_dir.summary, {"state": state, "explanation": "because"})
    assert status(run_dir, job).state == state


def test_a_requeued_job_is_queued_although_a_summary_exists(run_dir: RunDir) -> None:
    write_json_atomically(run_dir.summary, {"state": "requeued"})
    assert status(run_dir, PENDING).state is RunState.QUEUED


def test_a_silent_scheduler_is_unknown_and_no_end(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    step(run_dir, 3)
    found = status(run_dir, UNKNOWN)
    assert (found.state, found.why) == (RunState.UNKNOWN, "no answer")
    assert not found.state.ended


def test_a_job_that_vanished_without_a_word_has_failed(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    found = status(run_dir, ENDED)
    assert found.state is RunState.FAILED
    assert "CANCELLED" in found.why


def test_a_vanished_job_that_was_cancelled_is_cancelled(run_dir: RunDir) -> None:
    write_json_atomically(run_dir.cancel_request, {"by": "me"})
    assert status(run_dir, ENDED).state is RunState.CANCELLED


@pytest.mark.parametrize(("finished", "state"), [(2, "finished"), (1, "failed")])
def test_without_a_summary_only_all_ranks_finish_makes_a_finish(
    run_dir: RunDir, finished: int, state: str
) -> None:
    begin_attempt(run_dir, world_size=2)
    for rank in range(finished):
        say(run_dir.events(rank), "finish", attempt=1, rank=rank, step=10)
    assert status(run_dir, ENDED).state == state


def test_a_data_error_of_a_rank_is_the_users_error_even_if_a_victim_spoke_first(
    run_dir: RunDir,
) -> None:
    begin_attempt(run_dir)
    say(run_dir.events(1), "failure", attempt=1, rank=1, exception="RuntimeError", victim=True)
    say(run_dir.events(0), "failure", attempt=1, t=2000.0, exception="submitrain.errors.DataError")
    write_json_atomically(run_dir.summary, {"state": "failed", "cause": "program_error"})
    assert status(run_dir, ENDED).user_error


def test_a_program_error_is_not_the_users_input(run_dir: RunDir) -> None:
    begin_attempt(run_dir)
    say(run_dir.events(0), "failure", attempt=1, exception="ZeroDivisionError")
    write_json_atomically(run_dir.summary, {"state": "failed", "cause": "program_error"})
    assert not status(run_dir, ENDED).user_error


def test_status_is_plain_json(run_dir: RunDir) -> None:
    value = status(run_dir, PENDING).as_json()
    assert (value["state"], value["job_ids"]) == ("queued", ("17",))


def test_the_tail_of_a_large_file_starts_at_a_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    for number in range(200):
        append_line(path, {"kind": "step", "step": number})
    tail = read_tail(path, limit_bytes=500)
    assert [event["step"] for event in tail] == list(range(200 - len(tail), 200))
    assert 10 < len(tail) < 30


def test_only_published_checkpoints_are_listed(tmp_path: Path) -> None:
    for name, published in (("step-00000010", True), ("step-00000020", False), ("tmp-x", True)):
        (tmp_path / name).mkdir()
        if published:
            (tmp_path / name / "manifest.json").touch()
    assert list_checkpoint_steps(tmp_path) == (10,)


def test_a_living_process_is_alive_and_a_dead_one_is_not() -> None:
    process = subprocess.Popen(["sleep", "60"])
    try:
        reference = ProcessRef.of(process.pid)
        assert reference is not None
        assert reference.alive()
        assert reference.send_signal(signal.SIGKILL)
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert reference.alive() is False, "dead, though not reaped"
    finally:
        process.kill()
        process.wait()
    assert ProcessRef.of(process.pid) is None


def test_a_recycled_pid_is_neither_alive_nor_signalled() -> None:
    mine = ProcessRef.of(os.getpid())
    assert mine is not None
    earlier = replace(mine, start_ticks=mine.start_ticks - 1)
    assert earlier.alive() is False
    assert earlier.send_signal(signal.SIGKILL) is False


@pytest.mark.parametrize("field", ["host", "pid_namespace"])
def test_a_process_elsewhere_is_unknown(field: str) -> None:
    mine = ProcessRef.of(os.getpid())
    assert mine is not None
    assert replace(mine, **{field: "elsewhere"}).alive() is None


def test_a_process_of_before_the_reboot_is_dead() -> None:
    mine = ProcessRef.of(os.getpid())
    assert mine is not None
    assert replace(mine, boot_id="earlier").alive() is False
