"""The private cluster behaves as the tests of the product need it to."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cluster.client import wait_until
from tests.cluster.cluster import SlurmCluster, remove_abandoned_clusters
from tests.cluster.daemon import SlurmClusterError
from tests.cluster.fixtures import ClusterFactory, require_slurm
from tests.cluster.options import ClusterOptions, PreemptMode
from tests.cluster.process import is_alive, is_paused
from tests.cluster.state import list_clusters
from tests.paths import REPOSITORY

pytestmark = pytest.mark.slurm

PLAIN = ClusterOptions(accounting=False, kill_wait_s=2)
"""Starts in half a second."""


@pytest.fixture(autouse=True)
def slurm_is_installed() -> None:
    """Let also the tests that start their own cluster say what is missing."""
    require_slurm(ClusterOptions())


RANK = """
trap 'echo USR2 $SLURMD_NODENAME >> {log}' USR2
trap 'echo TERM $SLURMD_NODENAME >> {log}; exit 1' TERM
echo START $SLURMD_NODENAME >> {log}
while :; do sleep 0.1; done
"""
"""A rank that notes the signals it gets, and ends at SIGTERM only."""


def submit_ranks(
    cluster: SlurmCluster, folder: Path, *arguments: str, srun_arguments: str = ""
) -> tuple[int, Path]:
    """Start a job of signal-noting ranks, wait until all of them run; return its id and the log."""
    log = folder / "signals.log"
    (folder / "rank.sh").write_text(RANK.format(log=log))
    job_id = cluster.sbatch(f"srun {srun_arguments} bash {folder}/rank.sh", *arguments)
    num_nodes = int(cluster.wait_for_state(job_id, "RUNNING")["NumNodes"])
    wait_for_signals(log, "START", count=num_nodes)
    return job_id, log


def signals(log: Path) -> list[str]:
    """Return the words the ranks have noted."""
    return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []


def wait_for_signals(log: Path, name: str, *, count: int, timeout_s: float = 60) -> None:
    """Wait until that many ranks have noted a word."""
    wait_until(
        lambda: signals(log).count(name) >= count,
        what=f"{count} times {name}",
        timeout_s=timeout_s,
        details=lambda: str(signals(log)),
    )


def wait_for_restart(cluster: SlurmCluster, job_id: int) -> None:
    """Wait until a job runs for the second time."""

    def restarted() -> bool:
        fields = cluster.job(job_id)
        return (fields["Restarts"], fields["JobState"]) == ("1", "RUNNING")

    what = f"job {job_id} to run again"
    wait_until(restarted, what=what, timeout_s=60, details=lambda: str(cluster.job(job_id)))


def test_srun_starts_one_task_on_each_node_under_its_own_host_name(
    make_cluster: ClusterFactory,
) -> None:
    cluster = make_cluster(PLAIN)

    names = cluster.run("srun", "--nodes=4", "hostname").split()

    assert sorted(names) == ["node1", "node2", "node3", "node4"]


def test_node_names_resolve_on_the_nodes(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(PLAIN)

    assert cluster.run("srun", "getent", "hosts", "node4").split() == ["127.0.0.1", "node4"]


def test_a_job_gets_the_gpus_it_asks_for(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(PLAIN)

    devices = cluster.run("srun", "--gpus-per-node=h100:3", "printenv", "CUDA_VISIBLE_DEVICES")

    assert devices.strip() == "0,1,2"


def test_sacct_knows_the_account_of_a_finished_job(slurm_cluster: SlurmCluster) -> None:
    job_id = slurm_cluster.sbatch("true")
    slurm_cluster.wait_for_state(job_id, "COMPLETED")
    query = ("sacct", "-X", "-n", "-P", "-j", str(job_id), "-o", "State,Account,QOS")

    # slurmctld tells slurmdbd a moment later.
    wait_until(
        lambda: slurm_cluster.run(*query).strip() == "COMPLETED|research|normal",
        what="sacct to show the finished job",
        timeout_s=30,
        details=lambda: slurm_cluster.run(*query),
    )


@dataclass(frozen=True)
class Observed:
    """What a scenario has seen: the signals the ranks noted, and the job's fields then."""

    signals: list[str]
    job: dict[str, str]


def preempt_with_notice(folder: Path) -> Observed:
    """Preempt a job by QOS, watch the warning, wait until it runs again."""
    options = ClusterOptions(nodes=2, preempt_notice_s=6, kill_wait_s=2)
    with SlurmCluster.start(options) as cluster:
        job_id, log = submit_ranks(cluster, folder, "--nodes=2", "--signal=USR2@3")
        cluster.submit_high_priority_job(nodes=2, seconds=1)
        wait_for_signals(log, "USR2", count=2)
        at_notice = cluster.job(job_id)
        wait_for_restart(cluster, job_id)
        return Observed(signals(log)[:6], at_notice)


def preempt_without_notice(folder: Path) -> Observed:
    """Preempt a job by partition, wait until it runs again."""
    with SlurmCluster.start(PLAIN) as cluster:
        job_id, log = submit_ranks(cluster, folder, "--nodes=2", "--signal=USR2@3")
        cluster.submit_high_priority_job(nodes=4, seconds=1)
        wait_for_restart(cluster, job_id)
        return Observed(signals(log)[:4], cluster.job(job_id))


def requeue(folder: Path) -> Observed:
    """Requeue a job as an administrator does, wait until it runs again."""
    with SlurmCluster.start(PLAIN) as cluster:
        job_id, log = submit_ranks(cluster, folder, "--nodes=2")
        cluster.run("scontrol", "requeue", str(job_id))
        wait_for_restart(cluster, job_id)
        wait_for_signals(log, "START", count=4)
        return Observed(signals(log), cluster.job(job_id))


def come_near_time_limit(folder: Path) -> Observed:
    """Run a job whose warning is due at once: Slurm looks at time limits every 30 s."""
    with SlurmCluster.start(PLAIN) as cluster:
        job_id, log = submit_ranks(cluster, folder, "--time=1", "--signal=USR2@60")
        wait_for_signals(log, "USR2", count=1)
        return Observed(signals(log), cluster.job(job_id))


def reach_time_limit(folder: Path) -> Observed:
    """Move the end of a running job to now, wait until Slurm ends it."""
    with SlurmCluster.start(PLAIN) as cluster:
        job_id, log = submit_ranks(cluster, folder, "--time=10")
        cluster.run("scontrol", "update", f"JobId={job_id}", "EndTime=now")
        job = cluster.wait_for_state(job_id, "TIMEOUT")
        return Observed(signals(log), job)


def lose_slurmd(folder: Path) -> Observed:
    """Kill the slurmd of a node under a step with --no-kill, wait until the node is DOWN."""
    with SlurmCluster.start(PLAIN) as cluster:
        job_id, log = submit_ranks(
            cluster, folder, "--nodes=2", "--no-kill", srun_arguments="--no-kill"
        )
        cluster.kill_slurmd("node2")
        wait_until(
            lambda: cluster.node_states()["node2"].startswith("down"),
            what="node2 to be down",
            timeout_s=90,
            details=lambda: str(cluster.node_states()),
        )
        return Observed(signals(log), cluster.job(job_id))


Scenario = Callable[[Path], Observed]
SCENARIOS: tuple[Scenario, ...] = (
    preempt_with_notice,
    preempt_without_notice,
    requeue,
    come_near_time_limit,
    reach_time_limit,
    lose_slurmd,
)


@pytest.fixture(scope="module")
def observed(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[[Scenario], Observed]]:
    """Play all scenarios at once, as each of them mostly waits for a timer of Slurm."""
    require_slurm(ClusterOptions())  # module-scoped, so set up before `slurm_is_installed`
    with ThreadPoolExecutor(len(SCENARIOS)) as pool:
        playing = {
            play: pool.submit(play, tmp_path_factory.mktemp(play.__name__)) for play in SCENARIOS
        }
        yield lambda play: playing[play].result()


Play = Callable[[Scenario], Observed]


def test_preemption_with_notice_warns_the_ranks_long_before_it_ends_them(observed: Play) -> None:
    assert observed(preempt_with_notice).signals == ["START"] * 2 + ["USR2"] * 2 + ["TERM"] * 2


def test_at_the_notice_the_job_runs_and_says_that_it_is_preempted(observed: Play) -> None:
    job = observed(preempt_with_notice).job
    assert job["JobState"] == "RUNNING"
    assert job["PreemptTime"] != "None"


def test_preemption_without_notice_ends_the_ranks_at_once(observed: Play) -> None:
    assert observed(preempt_without_notice).signals == ["START"] * 2 + ["TERM"] * 2


def test_a_requeued_job_runs_again(observed: Play) -> None:
    assert observed(requeue).job["Restarts"] == "1"


def test_a_time_limit_warns_the_ranks(observed: Play) -> None:
    assert observed(come_near_time_limit).signals == ["START", "USR2"]


def test_a_time_limit_ends_the_job(observed: Play) -> None:
    assert observed(reach_time_limit).signals == ["START", "TERM"]


def test_a_job_with_no_kill_outlives_the_loss_of_a_node(observed: Play) -> None:
    job = observed(lose_slurmd).job
    assert (job["JobState"], job["NodeList"]) == ("RUNNING", "node1")


def test_a_step_with_no_kill_notices_nothing_of_the_loss_of_a_node(observed: Play) -> None:
    assert observed(lose_slurmd).signals == ["START"] * 2


def test_preemption_by_partition_can_warn_too(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    cluster = make_cluster(ClusterOptions(nodes=1, accounting=False, preempt_notice_s=60))
    job_id, log = submit_ranks(cluster, tmp_path, "--signal=USR2@3")

    cluster.submit_high_priority_job(nodes=1, seconds=1)
    wait_for_signals(log, "USR2", count=1)

    assert cluster.job(job_id)["JobState"] == "RUNNING"


def test_preemption_can_cancel_instead_of_requeue(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(
        ClusterOptions(nodes=1, accounting=False, preempt_mode=PreemptMode.CANCEL, kill_wait_s=2)
    )
    job_id, _ = submit_ranks(cluster, tmp_path)

    cluster.submit_high_priority_job(nodes=1, seconds=1)

    assert cluster.wait_for_state(job_id, "PREEMPTED")["Restarts"] == "0"


def test_a_step_without_no_kill_dies_when_a_node_is_marked_down(
    make_cluster: ClusterFactory, tmp_path: Path
) -> None:
    cluster = make_cluster(PLAIN)
    job_id, _ = submit_ranks(cluster, tmp_path, "--nodes=2", "--no-kill")

    cluster.lose_node("node2")
    cluster.mark_down("node2")

    assert cluster.wait_for_state(job_id, "FAILED")["NodeList"] == "node1"


def test_a_frozen_node_goes_on_where_it_was(make_cluster: ClusterFactory, tmp_path: Path) -> None:
    cluster = make_cluster(PLAIN)
    submit_ranks(cluster, tmp_path, "--nodes=2")

    cluster.freeze_node("node2")
    frozen = [process for process, name in cluster.processes().items() if name == "node2"]
    were_paused = [is_paused(process) for process in frozen]
    cluster.thaw_node("node2")

    assert len(frozen) >= 3  # slurmd, slurmstepd, the rank
    assert all(were_paused)
    assert not any(is_paused(process) for process in frozen)


def test_restore_mends_paused_and_killed_daemons(make_cluster: ClusterFactory) -> None:
    cluster = make_cluster(PLAIN)
    cluster.kill_slurmd("node2")
    cluster.pause("slurmctld")
    with pytest.raises(SlurmClusterError, match="took more than"):
        cluster.run("squeue", timeout_s=1)

    cluster.restore()

    assert cluster.run("srun", "--nodes=4", "hostname").count("node") == 4


def test_clusters_that_start_at_once_do_not_disturb_each_other() -> None:
    options = ClusterOptions(nodes=2, accounting=False)
    with ThreadPoolExecutor(3) as pool:
        clusters = list(pool.map(SlurmCluster.start, [options] * 3))
    try:
        jobs = [cluster.sbatch("true") for cluster in clusters]
        for cluster, job_id in zip(clusters, jobs, strict=True):
            cluster.wait_for_state(job_id, "COMPLETED")
    finally:
        for cluster in clusters:
            cluster.stop()
    assert jobs == [1, 1, 1]


def test_stop_ends_every_process_even_one_that_hides(tmp_path: Path) -> None:
    hidden = tmp_path / "pid"
    with SlurmCluster.start(PLAIN) as cluster:
        hide = f"env -i setsid sh -c 'echo $$ > {hidden}; exec sleep 1000' & wait"
        cluster.sbatch(hide)
        wait_until(hidden.exists, what="the hidden process", timeout_s=30)
        processes = list(cluster.processes())
    assert int(hidden.read_text()) in {process.pid for process in processes}
    assert [process for process in processes if is_alive(process)] == []
    assert not cluster.site.root.exists()


def test_stop_spares_a_cluster_that_started_after_a_node_was_lost() -> None:
    """The kernel numbers new namespaces like ended ones: they once passed for the lost node's."""
    options = ClusterOptions(nodes=2, accounting=False)
    with SlurmCluster.start(options) as old:
        for name in options.node_names:
            old.lose_node(name)
        with SlurmCluster.start(options) as new:
            old.stop()
            assert [name for name, daemon in new.daemons.items() if not daemon.alive] == []


OWNER = """
import sys, time
from tests.cluster.cluster import SlurmCluster
from tests.cluster.options import ClusterOptions, PreemptMode
cluster = SlurmCluster.start(ClusterOptions(nodes=1, accounting=False))
print(cluster.site.root, flush=True)
time.sleep(1000)
"""


def start_owner() -> tuple[subprocess.Popen[str], Path]:
    """Start another process that owns a cluster; return it and the cluster's folder."""
    project = REPOSITORY
    command = [sys.executable, "-c", OWNER]
    owner = subprocess.Popen(command, cwd=project, stdout=subprocess.PIPE, text=True)
    assert owner.stdout is not None
    return owner, Path(owner.stdout.readline().strip())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_cluster_stops_when_its_owner_is_told_to_end(number: signal.Signals) -> None:
    owner, root = start_owner()
    processes = list(SlurmCluster.attach(root).processes())
    with owner:
        owner.send_signal(number)
        owner.wait(timeout=60)
    assert [process for process in processes if is_alive(process)] == []
    assert root not in list(list_clusters())


def test_a_cluster_whose_owner_was_killed_is_removed_by_the_next() -> None:
    owner, root = start_owner()
    processes = list(SlurmCluster.attach(root).processes())
    with owner:
        owner.kill()
    remove_abandoned_clusters()
    assert [process for process in processes if is_alive(process)] == []


def test_a_failed_start_quotes_the_log_and_leaves_nothing() -> None:
    before = set(list_clusters())
    options = ClusterOptions(accounting=False, extra_slurm_conf=("NoSuchKey=1",))
    with pytest.raises(SlurmClusterError, match="NoSuchKey"):
        SlurmCluster.start(options)
    assert set(list_clusters()) <= before
