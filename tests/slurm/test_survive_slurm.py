"""The promise on a real Slurm with four nodes: real training, real faults, nobody's hand.

Every cluster of the matrix (with accounting or without, preemption with notice or without) gets a
preemption; the other faults run once with accounting and once without.
"""

from __future__ import annotations

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
STEPS = 60
SCHEDULE = {"grad_acc_steps": 1, "max_steps": STEPS, "ckpt_every_steps": 10}
PACED = "tests.components.PacedAdamW"

CLUSTERS = {
    "accounting-notice": ClusterOptions(accounting=True, preempt_notice_s=30),
    "accounting-no_notice": ClusterOptions(accounting=True, kill_wait_s=20),
    "no_accounting-notice": ClusterOptions(accounting=False, preempt_notice_s=30),
    "no_accounting-no_notice": ClusterOptions(accounting=False, kill_wait_s=20),
}
BOTH_KINDS = ["accounting-notice", "no_accounting-no_notice"]


@dataclass(frozen=True)
class Site:
    """A cluster and a folder that its nodes share."""

    cluster: SlurmCluster
    home: Path
    notice: bool

    def launch(self, *, time_limit: str = "10m", pause_s: float = 0.0, **sections: Any) -> Run:
        """Start the tiny training on four nodes, as a user of this cluster does."""
        slurm = {"nodes": 4, "ntasks_per_node": 1, "time": time_limit, "cpus_per_task": 1}
        return launch(paced_config(self.home, slurm, pause_s, **sections), cluster="slurm")

    def job_id(self, run: Run) -> int:
        """Id of the run's newest job."""
        return int(list(read_events(RunDir(run.folder).submissions))[-1]["job_id"])


def paced_config(
    home: Path, slurm: dict[str, Any], pause_s: float, **sections: Any
) -> dict[str, Any]:
    """The tiny run on four ranks, with steps of at least ``pause_s`` seconds."""
    optimizer = {"_target_": PACED, "lr": 3e-3, "pause_s": pause_s}
    return tiny_config(home, slurm=slurm, step_scheduler=SCHEDULE, optimizer=optimizer, **sections)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The undisturbed run, made without Slurm: four local ranks, the same arithmetic."""
    home = tmp_path_factory.mktemp("reference")
    config = paced_config(home, {"nodes": 4, "ntasks_per_node": 1}, 0.0)
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


@pytest.fixture(autouse=True)
def _idle(site: Site) -> Iterator[None]:
    yield
    site.cluster.restore()


def wait_for(condition: Callable[[], Any], what: str, run: Run) -> None:
    """Poll until ``condition`` holds; fail early, with the reason, when the run has ended."""
    deadline = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        assert not RunDir(run.folder).summary.exists(), RunDir(run.folder).summary.read_text()
        time.sleep(0.05)


def wait_for_step(run: Run, step: int) -> None:
    """Wait until rank 0 recorded ``step``."""
    wait_for(lambda: max(curve(run.folder), default=0) >= step, f"step {step}", run)


def restarts(site: Site, run: Run) -> int:
    """How often Slurm requeued the run's job."""
    return int(site.cluster.job(site.job_id(run))["Restarts"])


@pytest.mark.parametrize("site", CLUSTERS, indirect=True)
def test_a_preempted_run_comes_back_once_and_is_the_same(site: Site, reference: Path) -> None:
    run = site.launch(pause_s=0.1)
    wait_for_step(run, 14)
    preempt(site)
    assert run.wait(WAIT_S).state == "finished"
    first, last = attempts(run.folder)
    assert (first["cause"], last["cause"]) == ("preempted", "finished")
    assert restarts(site, run) == 1
    resumed = next(read_events(RunDir(run.folder).events(0), kinds=frozenset({Kind.RESUME})))
    assert resumed["step"] == first["last_step"], "a graceful stop loses no step"
    assert_same_run(run.folder, reference)


def preempt(site: Site) -> None:
    """Let a job of higher priority have all nodes for a while."""
    high = site.cluster.submit_high_priority_job(nodes=4, seconds=5)
    site.cluster.wait_for_state(high, "COMPLETED", timeout_s=120)


@pytest.mark.timeout(1000)
@pytest.mark.parametrize("site", BOTH_KINDS, indirect=True)
def test_several_time_limits_in_one_run_do_not_change_it(site: Site, reference: Path) -> None:
    """35 of a job's 60 s are for starting and training; 60 steps of 1.2 s need three jobs."""
    run = site.launch(time_limit="1m", pause_s=1.2, resilience={"stop_lead_s": 25})
    assert run.wait(2 * WAIT_S).state == "finished"
    causes = [end["cause"] for end in attempts(run.folder)]
    assert causes[-1] == "finished"
    assert set(causes[:-1]) == {"time_limit"}
    assert len(causes) >= 3
    assert restarts(site, run) == len(causes) - 1
    assert_same_run(run.folder, reference)


@pytest.mark.parametrize("site", BOTH_KINDS, indirect=True)
def test_a_killed_rank_is_replaced_inside_the_job(site: Site, reference: Path) -> None:
    run = site.launch()
    wait_for_step(run, 23)
    starts = read_events(RunDir(run.folder).events(2), kinds=frozenset({Kind.START}))
    os.kill(next(starts)["pid"], signal.SIGKILL)
    assert run.wait(WAIT_S).state == "finished"
    first, last = attempts(run.folder)
    assert (first["cause"], last["cause"]) == ("rank_died", "finished")
    assert "rank 2" in first["explanation"]
    assert restarts(site, run) == 0
    assert_same_run(run.folder, reference)


@pytest.mark.parametrize(
    ("site", "how"),
    [("accounting-notice", "scancel"), ("no_accounting-no_notice", "cancel")],
    indirect=["site"],
)
def test_a_cancelled_run_stays_cancelled_until_it_is_resumed(
    site: Site, reference: Path, how: str
) -> None:
    run = site.launch()
    wait_for_step(run, 5)
    job_id = site.job_id(run)
    if how == "cancel":
        run.cancel()
    else:
        site.cluster.run("scancel", str(job_id))
    assert run.wait(WAIT_S).state == "cancelled"
    assert attempts(run.folder)[-1]["cause"] == "cancelled"
    fields = site.cluster.wait_for_state(job_id, "CANCELLED")
    assert int(fields["Restarts"]) == 0
    assert run.resume().wait(WAIT_S).state == "finished"
    assert_same_run(run.folder, reference)
