"""What a job has to work with: its id, its nodes, its deadline, a way to start ranks there.

Two kinds behind one Protocol: this machine, and a Slurm job. The edge to the scheduler is
``monitor.slurm``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol

from launcher.spawn import LocalSpawner, Spawner
from launcher.srun import SrunSpawner, StepShape
from monitor.hostlist import expand_nodes
from monitor.slurm import ASK_TIMEOUT_S, JobInfo, kill_wait_s, show_job
from train.config import RunConfig
from train.config.load import secret_environment
from train.rundir import RunDir

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

    def prepare(self) -> None:
        """Look at what is left of the resources, before an attempt."""

    def shrunk(self) -> bool:
        """Whether nodes were lost since ``prepare``: ranks that wait for them wait for ever."""

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
        """``slurm.nodes``: all of them on this machine."""
        return self.config.slurm.nodes

    @property
    def job_started_at(self) -> float:
        """Start of this stretch."""
        return self.started_at

    def prepare(self) -> None:
        """This machine does not shrink."""

    def shrunk(self) -> bool:
        """This machine does not shrink."""
        return False

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
    has_queue: bool = True

    @property
    def limit_s(self) -> float:
        """The job's limit as Slurm granted it, else as configured."""
        return float(self.last.time_limit_s or self.config.slurm.time)

    @property
    def num_nodes(self) -> int:
        """Nodes as Slurm said last, else those that the ranks get."""
        return len(self.last.nodes) or self.spawner.shape.num_nodes

    @property
    def job_started_at(self) -> float:
        """StartTime as Slurm said last, else when this process began."""
        return self.last.started_at or self.started_at

    def prepare(self) -> None:
        """With ``--no-kill`` a lost node leaves a smaller job: go on with the nodes that live."""
        info = self.job()
        nodes = info.nodes if info is not None and info.running else ()
        if nodes and nodes != self.spawner.node_names:
            shape = replace(self.spawner.shape, num_nodes=len(nodes))
            self.spawner = replace(self.spawner, shape=shape, node_names=nodes)

    def shrunk(self) -> bool:
        """Whether the job has fewer nodes than the spawner counts on."""
        info = self.job()
        nodes = info.nodes if info is not None and info.running else ()
        return 0 < len(nodes) < len(self.spawner.node_names)

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
        config.slurm.nodes,
        config.slurm.ntasks_per_node,
        extra,
        **({"command": command} if command else {}),
    )
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
    cpus = config.slurm.cpus_per_task or environ.get("SLURM_CPUS_PER_TASK")
    shape = StepShape(
        num_nodes=len(nodes) or config.slurm.nodes,
        tasks_per_node=config.slurm.ntasks_per_node,
        cpus_per_task=int(cpus) if cpus else None,
        has_gpus=any(name in environ for name in ("SLURM_JOB_GPUS", "SLURM_GPUS_ON_NODE")),
    )
    spawner = SrunSpawner(run_dir, job_id, config, shape, nodes, extra, command)
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
    )
