"""What a job has to work with: its id, its nodes, its deadline, a way to start ranks there.

``Allocation`` is this machine; ``SlurmAllocation`` the Slurm job around this process. The edge to
the scheduler is ``submitrain.slurm.client``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace

from submitrain.config import RunConfig
from submitrain.config.resolve import secret_environment
from submitrain.launcher.container import choose_runtime, installed_runtimes
from submitrain.launcher.supervisor.node_failures import unresponsive_nodes
from submitrain.launcher.supervisor.processes import LocalSpawner, Spawner
from submitrain.launcher.supervisor.srun import SrunSpawner, StepShape
from submitrain.run_folder import RunDir
from submitrain.slurm.client import ASK_TIMEOUT_S, kill_wait_s, nodes_up, show_job
from submitrain.slurm.jobs import JobInfo
from submitrain.slurm.parse import expand_nodes

REFRESH_S = 300.0
"""Seconds between questions for the job's end: an administrator may move it."""
ASK_TRIES = 3
ASK_PAUSE_S = 0.3
LAST_WORD_S = 3.0
"""Seconds of KillWait that are kept for writing down how the attempt ended."""


@dataclass
class Allocation:
    """This machine, without a scheduler; ``slurm.time`` limits every stretch of a local run."""

    run_dir: RunDir
    config: RunConfig
    job_id: str
    """The scheduler's id of this job; it stays the same when the job is requeued."""
    spawner: Spawner
    """Starts ranks here."""
    started_at: float = field(default_factory=time.time)
    has_queue: bool = False
    """Whether a scheduler can take the job back into its queue."""
    restarts: int = 0
    """How often the scheduler had restarted the job when this process began."""
    gpus_per_node: int = 0
    """GPUs that the job was given on every node; 0 for none."""

    @property
    def limit_s(self) -> float:
        """The time limit of this job, in seconds."""
        return float(self.config.slurm.time)

    @property
    def kill_wait_s(self) -> float:
        """Seconds that ranks have for saving after TERM."""
        return float(self.config.resilience.kill_wait_s)

    @property
    def num_nodes(self) -> int:
        """Nodes that this job holds, used or spare; simulated nodes are not allocated."""
        return len(self.spawner.nodes)

    @property
    def job_started_at(self) -> float:
        """When this allocation began (UTC seconds)."""
        return self.started_at

    @property
    def granted(self) -> int:
        """How many nodes this job started with, simulated ones included."""
        return self.config.slurm.nodes.max

    def living_nodes(self) -> tuple[str, ...]:
        """Nodes that the job has now; none where nobody knows, or there is nothing to choose."""
        return ()

    def use(self, nodes: tuple[str, ...]) -> None:
        """Run the next attempts on these nodes of the job."""

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        """Nodes in use that are gone, and how that shows; ``suspects`` are asked themselves."""
        return {}

    def pool(self) -> frozenset[str] | None:
        """Nodes that could run such a job, as far as they are up; None where nobody knows."""
        return None

    def ends_at(self) -> float:
        """When the time limit strikes (UTC seconds); cheap, may be asked often."""
        return self.started_at + self.limit_s

    def renew(self) -> None:
        """Start a new time limit where there is no queue to wait in."""
        self.started_at = time.time()

    def job(self) -> JobInfo | None:
        """The scheduler's view of this job now, asked anew; None where nobody knows."""
        return None


class SlurmAllocation(Allocation):
    """The Slurm job around this process."""

    def __init__(
        self, run_dir: RunDir, config: RunConfig, spawner: SrunSpawner, environ: Mapping[str, str]
    ) -> None:
        super().__init__(run_dir, config, spawner.job_id, spawner, has_queue=True)
        self.srun = spawner
        self.asked_at = time.time()
        self.last = show_job(self.job_id)
        self.restarts = int(environ.get("SLURM_RESTART_COUNT") or self.last.restarts)
        self.gpus_per_node = int(environ.get("SLURM_GPUS_ON_NODE") or 0)
        self._granted = spawner.shape.num_nodes
        most_s = config.resilience.kill_wait_s
        self._kill_wait_s = max(1.0, min(most_s, kill_wait_s() or most_s) - LAST_WORD_S)

    @property
    def limit_s(self) -> float:
        """The job's limit as Slurm granted it, else as configured."""
        return float(self.last.time_limit_s or self.config.slurm.time)

    @property
    def kill_wait_s(self) -> float:
        """Slurm's KillWait, or less where less is configured; some is kept for the record."""
        return self._kill_wait_s

    @property
    def num_nodes(self) -> int:
        """Nodes as Slurm said last, spare ones too, else those that the ranks get."""
        return len(self.last.nodes) or self.srun.shape.num_nodes

    @property
    def job_started_at(self) -> float:
        """StartTime as Slurm said last, else when this process began."""
        return self.last.started_at or self.started_at

    @property
    def granted(self) -> int:
        """Nodes of the job when this process began."""
        return self._granted

    def living_nodes(self) -> tuple[str, ...]:
        """NodeList of the running job: with ``--no-kill`` a lost node leaves a smaller job."""
        info = self.job()
        return info.nodes if info is not None and info.running else ()

    def use(self, nodes: tuple[str, ...]) -> None:
        """One task per rank on these nodes; ``--nodelist`` unless it is the whole job."""
        nodelist = nodes if len(nodes) < self.granted else ()
        shape = replace(self.srun.shape, num_nodes=len(nodes), nodelist=nodelist)
        self.spawner = self.srun = replace(self.srun, shape=shape, nodes=nodes)

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        """Those that Slurm took out of the job, then what the suspects themselves answer."""
        living = self.living_nodes()
        if self.granted < 2 or not living:
            return {}
        lost = [node for node in self.spawner.nodes if node not in living]
        gone = dict.fromkeys(lost, "Slurm took it out of the job")
        return gone | unresponsive_nodes(sorted(set(suspects) - set(gone)), self.job_id)

    def pool(self) -> frozenset[str] | None:
        """Nodes of the job's partition that are up, less those that the user excludes."""
        up = nodes_up(self.last.partition)
        users = frozenset(expand_nodes(self.config.slurm.exclude or ""))
        return None if up is None else up - users

    def ends_at(self) -> float:
        """EndTime as Slurm said last, looked up again now and then."""
        if time.time() - self.asked_at > REFRESH_S:
            self.job()
        return self.last.ends_at or self.started_at + self.limit_s

    def renew(self) -> None:
        """A requeue renews the limit; nothing to do here."""

    def job(self) -> JobInfo | None:
        """``scontrol show job``; None when Slurm does not answer.

        Only a running job's EndTime is its limit: of a job that is being ended it is about now.
        """
        self.asked_at = time.time()
        for _ in range(ASK_TRIES):
            info = show_job(self.job_id, timeout_s=ASK_TIMEOUT_S / ASK_TRIES)
            if info.running:
                self.last = info
            if info.known:
                return info
            # The TERM that ends a job hits every process of its batch step, scontrol included.
            time.sleep(ASK_PAUSE_S)
        return None


def allocation_of(
    run_dir: RunDir, config: RunConfig, environ: Mapping[str, str], command: tuple[str, ...] = ()
) -> Allocation:
    """The allocation around this process: Slurm where submitit says that it runs under Slurm.

    Raises:
        ConfigError: a variable that the configuration names is not set here.
    """
    extra, slurm = secret_environment(config, environ), config.slurm
    if environ.get("SUBMITIT_EXECUTOR") != "slurm":
        job_id = environ.get("SUBMITIT_LOCAL_JOB_ID") or str(os.getpid())
        local = LocalSpawner(run_dir, job_id, slurm.nodes.max, slurm.ntasks_per_node, extra)
        local = replace(local, command=command) if command else local
        return Allocation(run_dir, config, job_id, local)
    nodes = tuple(expand_nodes(environ.get("SLURM_JOB_NODELIST", "")))
    # A job with a range of nodes has one task per node, with the CPUs of all ranks there.
    granted_cpus = environ.get("SLURM_CPUS_PER_TASK") if slurm.nodes.fixed else 1
    cpus = slurm.cpus_per_task or granted_cpus
    shape = StepShape(
        num_nodes=len(nodes) or slurm.nodes.max,
        tasks_per_node=slurm.ntasks_per_node,
        cpus_per_task=int(cpus) if cpus else None,
        has_gpus=any(name in environ for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")),
    )
    # The image's form may leave a choice, and this node has what the others have.
    runtime = choose_runtime(slurm, installed_runtimes() if slurm.in_container else ())
    job_id = environ["SLURM_JOB_ID"]
    spawner = SrunSpawner(run_dir, job_id, config, shape, nodes, extra, command, runtime)
    return SlurmAllocation(run_dir, config, spawner, environ)
