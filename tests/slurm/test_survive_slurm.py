"""The promise on real Slurm clusters: real training, real faults, nobody's hand.

Every cluster of the matrix (with accounting or without, preemption with notice or without) gets a
preemption. On one with accounting and on one without, the same run also loses a rank and is
cancelled and resumed, and beside it another one goes through several time limits.
"""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from submitrain.events import Kind, read_events
from submitrain.launcher import Run, launch
from submitrain.run_folder import RunDir
from tests.cluster.cluster import SlurmCluster
from tests.cluster.fixtures import require_slurm
from tests.cluster.options import ClusterOptions
from tests.tiny import assert_same_run, attempts, curve, tiny_config

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]
WAIT_S = 400.0
NODES = 2
STEPS = 60
SCHEDULE = {"grad_acc_steps": 1, "max_steps": STEPS, "ckpt_every_steps": 10}
PACED = "tests.components.PacedAdamW"

CLUSTERS = {
    "accounting-notice": ClusterOptions(accounting=True, preempt_notice_s=30),
    "accounting-no_notice": ClusterOptions(accounting=True, kill_wait_s=20),
    "no_accounting-notice": ClusterOptions(accounting=False, preempt_notice_s=30),
    "no_accounting-no_notice": ClusterOptions(accounting=False, kill_wait_s=20),
}
ONLY_PREEMPTED = ["accounting-no_notice", "no_accounting-notice"]


@dataclass(frozen=True)
class Site:
    """A cluster and a folder that its nodes share."""

    cluster: SlurmCluster
    home: Path
    notice: bool

    def launch(self, *, time_limit: str = "10m", pause_s: float = 0.0, **sections: Any) -> Run:
        """Start the tiny training on two nodes of its own, as a user of this cluster does."""
        shape = {"nodes": NODES, "ntasks_per_node": 1, "cpus_per_task": 1, "exclusive": True}
        slurm = {**shape, "time": time_limit}
        return launch(paced_config(self.home, slurm, pause_s, **sections), cluster="slurm")

    def job_id(self, run: Run) -> int:
        """Id of the run's newest job."""
        return int(list(read_events(RunDir(run.folder).submissions))[-1]["job_id"])


def paced_config(
    home: Path, slurm: dict[str, Any], pause_s: float, **sections: Any
) -> dict[str, Any]:
    """The tiny run, with steps of at least ``pause_s`` seconds."""
    optimizer = {"_target_": PACED, "lr": 3e-3, "pause_s": pause_s}
    return tiny_config(home, slurm=slurm, step_scheduler=SCHEDULE, optimizer=optimizer, **sections)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, made without Slurm: local ranks, the same arithmetic."""
    home = tmp_path_factory.mktemp("reference")
    config = paced_config(home, {"nodes": NODES, "ntasks_per_node": 1}, 0.0)
    run = launch(config, cluster="local")
    assert run.wait(WAIT_S).state == "finished"
    return run.folder


@pytest.fixture(scope="module")
def site(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Site]:
    """One cluster of the matrix, named by the test's parameter."""
    options = CLUSTERS[request.param]
    require_slurm(options)
    with (
        SlurmCluster.start(options) as cluster,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in cluster.env.items():
            patch.setenv(name, value)
        yield Site(cluster, tmp_path_factory.mktemp("shared"), options.preempt_notice_s is not None)


def wait_for(condition: Callable[[], Any], what: str, run: Run) -> None:
    """Poll until ``condition`` holds; fail early, with the reason, when the run has ended."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        if run.run_dir.summary.exists():
            summary = json.loads(run.run_dir.summary.read_text())
            assert summary["state"] == "requeued", summary
        time.sleep(0.1)


def steps_so_far(run: Run) -> int:
    """The newest step that rank 0 recorded."""
    return max(curve(run.folder), default=0)


def wait_for_step(run: Run, step: int) -> None:
    """Wait until rank 0 recorded ``step``."""
    wait_for(lambda: steps_so_far(run) >= step, f"step {step}", run)


def saves(run: Run) -> list[int]:
    """Steps of which a checkpoint was published."""
    published = read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.CHECKPOINT}))
    return [event["step"] for event in published]


def restarts(site: Site, run: Run) -> int:
    """How often Slurm requeued the run's job."""
    return int(site.cluster.job(site.job_id(run))["Restarts"])


def kill_a_rank(run: Run) -> None:
    """SIGKILL to rank 1 of the first attempt."""
    starts = read_events(RunDir(run.folder).events(1), kinds=frozenset({Kind.START}))
    os.kill(next(starts)["pid"], signal.SIGKILL)


def preempt(site: Site, run: Run) -> None:
    """Let a job of higher priority have the run's nodes for a while."""
    nodes = site.cluster.job(site.job_id(run))["NodeList"]
    high = site.cluster.submit_high_priority_job(nodes=NODES, seconds=2, nodelist=nodes)
    site.cluster.wait_for_state(high, "COMPLETED", timeout_s=120)


def resumed_from(run: Run) -> list[int]:
    """Steps from which later attempts went on."""
    resumes = read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.RESUME}))
    return [event["step"] for event in resumes]


@pytest.mark.parametrize("site", ONLY_PREEMPTED, indirect=True)
def test_a_preempted_run_comes_back_once_and_is_the_same(site: Site, reference: Path) -> None:
    run = site.launch(pause_s=0.1)
    wait_for_step(run, 14)
    preempt(site, run)
    assert run.wait(WAIT_S).state == "finished"
    first, last = attempts(run.folder)
    assert (first["cause"], last["cause"]) == ("preempted", "finished")
    assert restarts(site, run) == 1
    assert resumed_from(run) == [first["last_step"]], "a graceful stop loses no step"
    assert_same_run(run.folder, reference)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize(
    ("site", "how"),
    [("accounting-notice", "scancel"), ("no_accounting-no_notice", "cancel")],
    indirect=["site"],
)
def test_whatever_happens_to_a_run_it_is_the_undisturbed_one(
    site: Site, reference: Path, how: str
) -> None:
    """Two runs side by side: one through time limits, one through a kill, preemption, a cancel."""
    # 28 of a job's 60 s are for starting and training; 60 steps of 0.8 s need three jobs.
    limited = site.launch(time_limit="1m", pause_s=0.8, resilience={"stop_lead_s": 32})
    wait_for_step(limited, 1)
    run = site.launch(pause_s=0.2)
    wait_for(lambda: saves(run), "a checkpoint", run)
    kill_a_rank(run)
    wait_for(lambda: len(resumed_from(run)) == 1, "the second attempt", run)
    wait_for_step(run, steps_so_far(run) + 3)
    preempt(site, run)
    wait_for(lambda: len(resumed_from(run)) == 2, "the third attempt", run)
    wait_for_step(run, steps_so_far(run) + 3)
    cancel(site, run, how)
    assert run.resume().wait(WAIT_S).state == "finished"
    ends = attempts(run.folder)
    assert [end["cause"] for end in ends] == ["rank_died", "preempted", "cancelled", "finished"]
    assert "rank 1" in ends[0]["explanation"]
    assert resumed_from(run) == [10, ends[1]["last_step"], ends[2]["last_step"]], "the last save"
    assert_same_run(run.folder, reference)

    assert limited.wait(2 * WAIT_S).state == "finished"
    causes = [end["cause"] for end in attempts(limited.folder)]
    assert causes[-1] == "finished"
    assert set(causes[:-1]) == {"time_limit"}
    assert len(causes) >= 3
    assert restarts(site, limited) == len(causes) - 1
    assert_same_run(limited.folder, reference)


def cancel(site: Site, run: Run, how: str) -> None:
    """End the job for good, by our command or by Slurm's; Slurm brings it back once, not twice."""
    job_id = site.job_id(run)
    if how == "cancel":
        run.cancel()
    else:
        site.cluster.run("scancel", str(job_id))
    assert run.wait(WAIT_S).state == "cancelled"
    fields = site.cluster.wait_for_state(job_id, "CANCELLED")
    assert int(fields["Restarts"]) == 1, "the preemption's; a kill and a cancel requeue nothing"
