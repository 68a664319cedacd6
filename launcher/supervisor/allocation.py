"""What a job has to work with: its id, its nodes, its deadline, a way to start ranks there.

Two kinds behind one Protocol: this machine, and a Slurm job. The edge to the scheduler is
``submitrain.slurm.client``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from submitrain.config import RunConfig
from submitrain.config.resolve import secret_environment
from submitrain.launcher.container import choose_runtime, installed_runtimes
from submitrain.launcher.supervisor.node_failures import nodes_up, silent_to_a_step
from submitrain.launcher.supervisor.processes import LocalSpawner, Spawner
from submitrain.launcher.supervisor.srun import SrunSpawner, StepShape
from submitrain.run_folder import RunDir
from submitrain.slurm.client import ASK_TIMEOUT_S, JobInfo, kill_wait_s, show_job
from submitrain.slurm.parse import expand_nodes

REFRESH_S = 300.0
"""Seconds between looks at the job's end: an administrator may move it."""
ASK_TRIES = 3
ASK_PAUSE_S = 0.3
LAST_WORD_S = 3.0
"""Seconds of KillWait that are kept for writing down how the attempt ended."""


class Allocation(Protocol):
    """The resources of this job."""

    @property
    def job_id(self) -> str:
        """The scheduler's id of this job; it stays the same when the job is requeued."""

    @property
    def spawner(self) -> Spawner:
        """Starts ranks here."""

    @property
    def has_queue(self) -> bool:
        """Whether a scheduler can take the job back into its queue."""

    @property
    def limit_s(self) -> float:
        """The time limit of this job, in seconds."""

    @property
    def kill_wait_s(self) -> float:
        """Seconds that ranks have for saving after TERM."""

    @property
    def num_nodes(self) -> int:
        """Nodes that this job holds, used or spare."""

    @property
    def job_started_at(self) -> float:
        """When this allocation began (UTC seconds)."""

    @property
    def restarts(self) -> int:
        """How often the scheduler had restarted the job when this process began."""

    @property
    def granted(self) -> int:
        """How many nodes this job started with."""

    @property
    def gpus_per_node(self) -> int:
        """GPUs that the job was given on every node; 0 for none."""

    def living_nodes(self) -> tuple[str, ...]:
        """Nodes that the job has now; none where nobody knows, or there is nothing to choose."""

    def use(self, nodes: tuple[str, ...]) -> None:
        """Run the next attempts on these nodes of the job."""

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        """Nodes in use that are gone, and how that shows; ``suspects`` are asked themselves."""

    def pool(self) -> frozenset[str] | None:
        """Nodes that could run such a job, as far as they are up; None where nobody knows."""

    def ends_at(self) -> float:
        """When the time limit strikes (UTC seconds); cheap, may be asked often."""

    def renew(self) -> None:
        """Start a new time limit where there is no queue to wait in."""

    def job(self) -> JobInfo | None:
        """The scheduler's view of this job now, asked anew; None where nobody knows."""


@dataclass
class LocalAllocation:
    """This machine; ``slurm.time`` is the limit of every stretch of a local run."""

    run_dir: RunDir
    config: RunConfig
    job_id: str
    spawner: Spawner
    started_at: float = field(default_factory=time.time)
    has_queue: bool = False
    restarts: int = 0
    gpus_per_node: int = 0
    """Nobody hands out the GPUs of this machine."""

    @property
    def limit_s(self) -> float:
        """``slurm.time``."""
        return float(self.config.slurm.time)

    @property
    def kill_wait_s(self) -> float:
        """``resilience.kill_wait_s``."""
        return float(self.config.resilience.kill_wait_s)

    @property
    def num_nodes(self) -> int:
        """This machine; simulated nodes are not allocated."""
        return len(self.spawner.nodes)

    @property
    def job_started_at(self) -> float:
        """Start of this stretch."""
        return self.started_at

    @property
    def granted(self) -> int:
        """Simulated nodes."""
        return self.config.slurm.nodes.max

    def living_nodes(self) -> tuple[str, ...]:
        """Simulated nodes have no names of their own."""
        return ()

    def use(self, nodes: tuple[str, ...]) -> None:
        """There is nothing to choose from."""

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        """This machine does not shrink."""
        return {}

    def pool(self) -> None:
        """There is no other machine."""

    def ends_at(self) -> float:
        """Start of this stretch plus the limit."""
        return self.started_at + self.limit_s

    def renew(self) -> None:
        """Start a new stretch: nobody else waits for this machine."""
        self.started_at = time.time()

    def job(self) -> None:
        """There is no scheduler."""


@dataclass
class SlurmAllocation:
    """The Slurm job around this process."""

    run_dir: RunDir
    config: RunConfig
    job_id: str
    spawner: SrunSpawner
    kill_wait_s: float
    last: JobInfo
    asked_at: float
    started_at: float
    restarts: int
    granted: int
    has_queue: bool = True
    gpus_per_node: int = 0

    @property
    def limit_s(self) -> float:
        """The job's limit as Slurm granted it, else as configured."""
        return float(self.last.time_limit_s or self.config.slurm.time)

    @property
    def num_nodes(self) -> int:
        """Nodes as Slurm said last, spare ones too, else those that the ranks get."""
        return len(self.last.nodes) or self.spawner.shape.num_nodes

    @property
    def job_started_at(self) -> float:
        """StartTime as Slurm said last, else when this process began."""
        return self.last.started_at or self.started_at

    def living_nodes(self) -> tuple[str, ...]:
        """NodeList of the running job: with ``--no-kill`` a lost node leaves a smaller job."""
        info = self.job()
        return info.nodes if info is not None and info.running else ()

    def use(self, nodes: tuple[str, ...]) -> None:
        """One task per rank on these nodes; ``--nodelist`` unless it is the whole job."""
        nodelist = nodes if len(nodes) < self.granted else ()
        shape = replace(self.spawner.shape, num_nodes=len(nodes), nodelist=nodelist)
        self.spawner = replace(self.spawner, shape=shape, node_names=nodes)

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        """Those that Slurm took out of the job, then what the suspects themselves answer."""
        in_use, living = self.spawner.node_names, self.living_nodes()
        if self.granted < 2 or not living:
            return {}
        gone = {node: "Slurm took it out of the job" for node in in_use if node not in living}
        return gone | silent_to_a_step(sorted(set(suspects) - set(gone)), self.job_id)

    def pool(self) -> frozenset[str] | None:
        """Nodes of the job's partition that are up, less those that the user excludes."""
        up = nodes_up(self.last.partition)
        if up is None:
            return None
        return up - frozenset(expand_nodes(self.config.slurm.exclude or ""))

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
) -> LocalAllocation | SlurmAllocation:
    """The allocation around this process: Slurm where submitit says that it runs under Slurm.

    Raises:
        ConfigError: a variable that the configuration names is not set here.
    """
    extra = secret_environment(config, environ)
    if environ.get("SUBMITIT_EXECUTOR") == "slurm":
        return _slurm(run_dir, config, environ, extra, command)
    job_id = environ.get("SUBMITIT_LOCAL_JOB_ID") or str(os.getpid())
    spawner = LocalSpawner(
        run_dir,
        job_id,
        config.slurm.nodes.max,
        config.slurm.ntasks_per_node,
        extra,
    )
    spawner = replace(spawner, command=command) if command else spawner
    return LocalAllocation(run_dir, config, job_id, spawner)


def _slurm(
    run_dir: RunDir,
    config: RunConfig,
    environ: Mapping[str, str],
    extra: Mapping[str, str],
    command: tuple[str, ...],
) -> SlurmAllocation:
    job_id = environ["SLURM_JOB_ID"]
    nodes = tuple(expand_nodes(environ.get("SLURM_JOB_NODELIST", "")))
    # A job with a range of nodes has one task per node, with the CPUs of all ranks there.
    granted_cpus = environ.get("SLURM_CPUS_PER_TASK") if config.slurm.nodes.fixed else 1
    cpus = config.slurm.cpus_per_task or granted_cpus
    shape = StepShape(
        num_nodes=len(nodes) or config.slurm.nodes.max,
        tasks_per_node=config.slurm.ntasks_per_node,
        cpus_per_task=int(cpus) if cpus else None,
        has_gpus=any(name in environ for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")),
    )
    # The image's form may leave a choice, and this node has what the others have.
    installed = installed_runtimes() if config.slurm.in_container else ()
    runtime = choose_runtime(config.slurm, installed)
    spawner = SrunSpawner(run_dir, job_id, config, shape, nodes, extra, command, runtime)
    granted = kill_wait_s()
    wait_s = min(config.resilience.kill_wait_s, granted or config.resilience.kill_wait_s)
    job = show_job(job_id)
    return SlurmAllocation(
        run_dir,
        config,
        job_id,
        spawner,
        kill_wait_s=max(1.0, wait_s - LAST_WORD_S),
        last=job,
        asked_at=time.time(),
        started_at=time.time(),
        restarts=int(environ.get("SLURM_RESTART_COUNT") or job.restarts),
        granted=shape.num_nodes,
        gpus_per_node=int(environ.get("SLURM_GPUS_ON_NODE") or 0),
    )
