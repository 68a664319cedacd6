"""A supervisor that submitted a new job, which may begin before the old one has had its say."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from submitrain.attempts import Action, Cause, Decision
from submitrain.config.resolve import load_resolved
from submitrain.errors import ClusterError
from submitrain.events import Kind, read_events
from submitrain.launcher.supervisor.allocation import Allocation, allocation_of
from submitrain.launcher.supervisor.attempt import SignalNotes
from submitrain.launcher.supervisor.supervise import Resubmit, Supervisor
from submitrain.monitor.audit.ledger import read_trail
from submitrain.run_folder import RunDir
from tests.supervised import make_run, rank_environment

pytestmark = pytest.mark.ranks

PLAN = {"steps": 10_000, "step_s": 0.05}
NEARLY_OVER = {"stop_lead_s": 57}


def refused(exclude: tuple[str, ...]) -> Decision:
    """What Slurm says of a job with ``--no-requeue``."""
    return Decision(Cause.TIME_LIMIT, Action.RESUBMIT, "Slurm did not requeue job 7")


def supervisor(run_dir: RunDir, resubmit: Resubmit) -> Supervisor:
    """A supervisor on this machine that believes to be in a job with a queue, near its limit."""
    config = load_resolved(run_dir.config, os.environ)
    allocation = allocation_of(run_dir, config, os.environ)
    assert type(allocation) is Allocation
    allocation.has_queue = True
    return Supervisor(run_dir, config, allocation, SignalNotes(), refused, resubmit)


@pytest.fixture
def run_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDir:
    for name, value in rank_environment().items():
        monkeypatch.setenv(name, value)
    structlog.reset_defaults()  # another test may have left a log on its own, closed, stream
    return make_run(tmp_path / "run", plan=PLAN, slurm={"time": "1m"}, resilience=NEARLY_OVER)


def test_a_new_job_that_begins_at_once_does_not_silence_the_one_that_submitted_it(
    run_dir: RunDir,
) -> None:
    def resubmit(exclude: tuple[str, ...]) -> str:
        assert run_dir.claim_attempt(after=1) == 2
        return "8"

    decision = supervisor(run_dir, resubmit).run()
    assert (decision.cause, decision.action) == (Cause.TIME_LIMIT, Action.RESUBMIT)
    end = list(read_events(run_dir.attempts, kinds=frozenset({Kind.ATTEMPT_END})))[-1]
    assert (end["attempt"], end["action"]) == (1, "resubmit")
    assert end["explanation"].endswith("job 8 continues the run")
    assert not run_dir.summary.exists()
    asked, denied, new = read_trail(run_dir).entries
    assert (asked["act"], asked["outcome"], asked["attempt"]) == ("requeue", "asked", 1)
    assert asked["facts"]["cause"] == "time_limit"
    assert (denied["act"], denied["outcome"]) == ("requeue", "refused: Slurm did not requeue job 7")
    assert (new["act"], new["outcome"], new["job_id"]) == ("resubmit", "done", "8")
    assert new["facts"]["after"] == asked["job_id"]
    assert {one["who"]["via"] for one in (asked, denied, new)} == {"supervisor"}


def test_a_new_job_that_slurm_refuses_is_in_the_trail(run_dir: RunDir) -> None:
    def resubmit(exclude: tuple[str, ...]) -> str:
        raise ClusterError("slurm: sbatch refused the job: Invalid account")

    assert supervisor(run_dir, resubmit).run().action is Action.STOP
    (last,) = [one for one in read_trail(run_dir).entries if one["act"] == "resubmit"]
    assert (last["act"], last["job_id"]) == ("resubmit", "")
    assert last["outcome"] == "refused: slurm: sbatch refused the job: Invalid account"


def test_a_supervisor_that_lost_the_run_submits_nothing(run_dir: RunDir) -> None:
    submitted = []

    def lose(exclude: tuple[str, ...]) -> Decision:
        assert run_dir.claim_attempt(after=1) == 2  # another supervisor, while Slurm was asked
        return refused(exclude)

    def resubmit(exclude: tuple[str, ...]) -> str:
        submitted.append(exclude)
        return "8"

    old = supervisor(run_dir, resubmit)
    old.requeue = lose
    assert old.run().cause is Cause.FENCED
    assert submitted == []
    end = list(read_events(run_dir.attempts, kinds=frozenset({Kind.ATTEMPT_END})))[-1]
    assert end["action"] == "requeue"
