"""Runs that begin when another run has finished, on a real Slurm: through requeues and new jobs."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from submitrain.errors import UserError
from submitrain.events import Kind, read_events
from submitrain.launcher import Run, launch
from submitrain.status import RunState
from tests.cluster.cluster import SlurmCluster
from tests.paths import TOY_RANK
from tests.tiny import tiny_config

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]
WAIT_S = 240.0
RANK = '''
from pathlib import Path

import toy_rank


def main(context, config):
    """The toy, but runs called first-... fail while there is a file."""
    if context.run_dir.run_id.startswith("first") and Path(FAIL).exists():
        raise ValueError("as planned")
    return toy_rank.main(context, config)
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, slurm_cluster: SlurmCluster) -> Path:
    """A user's project on this cluster."""
    shutil.copy(TOY_RANK, tmp_path)
    (tmp_path / "chain_rank.py").write_text(RANK.replace("FAIL", repr(str(tmp_path / "fail"))))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SUBMITRAIN_RANK_MODULE", "chain_rank")
    monkeypatch.setenv("TOY_STEP_S", "0.1")
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    return tmp_path


def start(
    project: Path, name: str, *, steps: int = 5, after: str | None = None, **sections: Any
) -> Run:
    """A toy run of one rank."""
    slurm = {"nodes": 1, "ntasks_per_node": 1, "time": "10m", **sections.pop("slurm", {})}
    length = {"max_steps": steps}
    config = tiny_config(project, step_scheduler=length, slurm=slurm, name=name, **sections)
    return launch({**config, "after": after}, cluster="slurm")


def until(condition: Callable[[], Any]) -> None:
    """Wait until something holds."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def waits(cluster: SlurmCluster, run: Run) -> bool:
    """Whether a run's newest job is held back by its dependency.

    Just after a change of the dependency Slurm gives no reason for a moment.
    """
    job = run.status().job_ids[-1]
    said = cluster.run("squeue", "--noheader", "--format=%T %r", f"--jobs={job}", check=False)
    return said.split() == ["PENDING", "Dependency"]


def began(run: Run) -> float:
    """Start of its first attempt (UTC seconds)."""
    kinds = frozenset({Kind.ATTEMPT_START})
    return float(next(iter(read_events(run.run_dir.attempts, kinds=kinds)))["t"])


def ended(run: Run) -> float:
    """End of the last event of its rank (UTC seconds)."""
    return float(list(read_events(run.run_dir.events(0)))[-1]["t"])


def test_a_successor_waits_for_a_finish_in_whichever_job_it_comes(
    project: Path, slurm_cluster: SlurmCluster
) -> None:
    """The first run's job may not be requeued and has a limit of a minute: two jobs or more."""
    short = {"slurm": {"time": "1m", "requeue": False}, "resilience": {"stop_lead_s": 50}}
    first = start(project, "first", steps=150, **short)
    second = start(project, "second", after="first")
    until(lambda: waits(slurm_cluster, second))
    until(lambda: len(first.status().job_ids) == 2)
    until(lambda: waits(slurm_cluster, second))
    assert first.wait(WAIT_S).state is RunState.FINISHED
    assert second.wait(WAIT_S).state is RunState.FINISHED
    assert began(second) > ended(first)
    assert len(second.status().job_ids) == 1, "it began too early and had to go back"


def test_a_cancelled_run_takes_those_along_that_wait_for_it(
    project: Path, slurm_cluster: SlurmCluster
) -> None:
    """The first one waits for its begin, so that no supervisor can tell anybody."""
    first = start(project, "first", slurm={"begin": "now+1hour"})
    second = start(project, "second", after="first")
    until(lambda: waits(slurm_cluster, second))
    first.cancel()
    status = second.status()
    assert status.state is RunState.FAILED
    assert f"the run before it, {first.run_id}, cancelled by the user" in status.why
    until(lambda: not slurm_cluster.run("squeue", "--noheader", f"--name={second.run_id[:6]}"))
    assert second.run_dir.newest_attempt() == 0


def test_what_follows_a_failure_never_begins_and_says_why_until_both_are_resumed(
    project: Path, slurm_cluster: SlurmCluster
) -> None:
    first = start(project, "first", steps=80)
    second = start(project, "second", after=first.run_id)
    third = start(project, "third", after=str(second.folder))
    until(lambda: len(first.metrics()) >= 3)
    # Somebody takes the dependency away: the run itself is asked, and the job goes back behind it.
    job = second.status().job_ids[-1]
    slurm_cluster.run("scontrol", "update", f"JobId={job}", "Dependency=")
    until(lambda: len(second.status().job_ids) == 2)
    until(lambda: waits(slurm_cluster, second))
    assert second.run_dir.newest_attempt() == 0
    (project / "fail").touch()
    slurm_cluster.run("scontrol", "requeue", first.status().job_ids[-1])
    until(lambda: first.status().state is RunState.QUEUED)
    until(lambda: waits(slurm_cluster, second))
    assert first.wait(WAIT_S).state is RunState.FAILED
    for run, before in ((second, first), (third, second)):
        status = run.wait(WAIT_S)
        assert status.state is RunState.FAILED
        assert f"not started: the run before it, {before.run_id}, failed" in status.why
        assert "ValueError" in status.why
        assert run.run_dir.newest_attempt() == 0
    jobs = slurm_cluster.run("squeue", "--noheader", "--format=%T", "--states=PD,R")
    assert "PENDING" not in jobs
    with pytest.raises(UserError, match=rf"^after: {first.run_id} failed: .*resume it"):
        start(project, "fourth", after=first.run_id)
    (project / "fail").unlink()
    first.resume()
    second.resume()
    until(lambda: first.run_dir.newest_attempt() == 3)
    slurm_cluster.run("scontrol", "requeue", first.status().job_ids[-1])
    until(lambda: first.status().state is RunState.QUEUED)
    until(lambda: waits(slurm_cluster, second))
    assert second.wait(WAIT_S).state is RunState.FINISHED
    assert first.status().state is RunState.FINISHED
    assert began(second) > ended(first)
