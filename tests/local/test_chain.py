"""Runs that wait for another one, without Slurm."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from submitrain.attempts import Action, Cause
from submitrain.config.job import ResilienceConfig
from submitrain.errors import UserError
from submitrain.events import read_events
from submitrain.launcher import Run, launch
from submitrain.launcher.plan.prepare import prepare
from submitrain.launcher.submit.dependency import ended_while_waiting
from submitrain.slurm.jobs import JobInfo
from submitrain.status import RunState
from tests.paths import TOY_RANK
from tests.tiny import tiny_config

WAIT_S = 120.0


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's project with toy ranks."""
    shutil.copy(TOY_RANK, tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "toy_rank")
    monkeypatch.setenv("TOY_STEP_S", "0.2")
    return tmp_path


def start(project: Path, name: str, *, steps: int, after: str | None = None) -> Run:
    config = tiny_config(project, step_scheduler={"max_steps": steps}, name=name, after=after)
    return launch({**config, "slurm": {"ntasks_per_node": 1}}, cluster="local")


@pytest.mark.ranks
def test_local_runs_wait_for_a_finish_and_end_where_it_cannot_come(project: Path) -> None:
    first = start(project, "first", steps=10)
    second = start(project, "second", steps=1, after="first")
    third = start(project, "third", steps=1000, after=str(second.folder))
    fourth = start(project, "fourth", steps=1, after="third")
    assert second.wait(WAIT_S).state is RunState.FINISHED
    ends = [list(read_events(run.run_dir.events(0))) for run in (first, second)]
    assert ends[0][-1]["kind"] == "finish"
    assert ends[1][0]["t"] > ends[0][-1]["t"]
    while not third.metrics():
        time.sleep(0.2)
    third.cancel()
    status = fourth.wait(WAIT_S)
    assert status.state is RunState.FAILED
    assert f"the run before it, {third.run_id}, cancelled" in status.why
    assert fourth.run_dir.newest_attempt() == 0
    with pytest.raises(UserError, match=rf"^after: {third.run_id} cancelled"):
        start(project, "fifth", steps=1, after="third")


def test_a_run_that_is_not_there_cannot_be_waited_for(project: Path) -> None:
    with pytest.raises(UserError, match=r"^after: no run nothing"):
        start(project, "second", steps=1, after="nothing")


@pytest.mark.ranks
def test_what_the_run_before_will_write_need_not_be_there_yet(project: Path) -> None:
    first = start(project, "first", steps=1)
    export = str(first.folder / "export")
    model = {"pretrained_model_name_or_path": export}
    config = {**tiny_config(project, name="second"), "model": model}
    assert prepare({**config, "after": "first"}, cluster="local").loaded.config.after == str(
        first.folder
    )
    with pytest.raises(UserError, match="no such folder"):
        prepare(config, cluster="local")
    assert first.wait(WAIT_S).state is RunState.FINISHED


@pytest.mark.parametrize(
    ("job", "expected"),
    [
        (JobInfo("7", "PENDING", restarts=1), (Cause.REQUEUED, Action.LEAVE)),
        (JobInfo("7", "COMPLETING", preempted_at=1.0), (Cause.PREEMPTED, Action.RESUBMIT)),
        (JobInfo("7", "COMPLETING", reason="TimeLimit"), (Cause.TIME_LIMIT, Action.RESUBMIT)),
        (JobInfo("7", "COMPLETING"), (Cause.CANCELLED, Action.STOP)),
        (None, (Cause.TERMINATED, Action.LEAVE)),
    ],
    ids=["requeued", "preempted for good", "time limit", "scancel", "nobody knows"],
)
def test_a_successor_that_is_told_to_end_does_what_brings_it_back(
    job: JobInfo | None, expected: tuple[Cause, Action]
) -> None:
    allocation = WaitingAllocation(job)
    decision = ended_while_waiting(allocation, ResilienceConfig())  # type: ignore[arg-type]
    assert (decision.cause, decision.action) == expected


class WaitingAllocation:
    """A job on Slurm whose supervisor waits for its turn."""

    has_queue = True
    restarts = 0
    spawner = SimpleNamespace(world_size=2)

    def __init__(self, job: JobInfo | None) -> None:
        self._job = job

    def job(self) -> JobInfo | None:
        return self._job

    def ends_at(self) -> float:
        return time.time() + 600
