"""Guards a job against the loss of its first node, and of the supervisor with it.

With ``--no-kill`` Slurm takes a lost node out of the job and lets the job go on, the first node
too: seen with 22.05.8, the job then runs without a batch process until its time limit. So a light
process on the job's last node (a step of its own) asks now and then whether the first node still
belongs to the job, and requeues the job when it does not. The rest is the successor's business.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import structlog

from submitrain.attempts import RESUME_HINT
from submitrain.launcher.supervisor.processes import start_process
from submitrain.launcher.supervisor.srun import srun_environment
from submitrain.run_folder import RunDir
from submitrain.slurm.client import requeue_job, scancel, show_job
from submitrain.slurm.jobs import JobInfo

POLL_EVERY_S = 30.0
ASK_AGAIN_S = 10.0
STEP_NAME = "guard"

log = structlog.get_logger(__name__)


class JobHealth(StrEnum):
    """What the guard sees of its job."""

    FINE = "fine"
    ORPHANED = "orphaned"
    """The first node is gone, and nobody supervises the job."""
    OVER = "over"


def judge(job: JobInfo, first_node: str, restarts: int) -> JobHealth:
    """Whether the job still has its first node; nobody's answer is no news. Pure.

    A job with more ``restarts`` than when this guard was set up is another one's to guard: this
    node was cut off and came back.
    """
    if not job.known:
        return JobHealth.FINE
    if not job.running or job.restarts != restarts:
        return JobHealth.OVER
    return JobHealth.FINE if not job.nodes or first_node in job.nodes else JobHealth.ORPHANED


@dataclass
class Guard:
    """The supervisor's side: keeps one guard on the last node of the job."""

    run_dir: RunDir
    job_id: str
    restarts: int
    _first_node: str = ""
    _node: str = ""
    _step: subprocess.Popen[bytes] | None = None

    def ensure(self, nodes: Sequence[str]) -> None:
        """See that the last of ``nodes`` has a living guard; one that cannot start stops nobody."""
        self._first_node = self._first_node or os.environ.get("SLURMD_NODENAME") or nodes[0]
        alive = self._step is not None and self._step.poll() is None
        if len(nodes) < 2 or (alive and self._node in nodes):
            return
        self._node = nodes[-1]
        # A supervisor that comes back late has a log of its own.
        words = self.run_dir.submitit / f"{self.job_id}_{self.restarts}_guard_log.txt"
        command = [*guard_command(words, self._node), self.job_id, self._first_node]
        with suppress(OSError):
            self._step = start_process(
                [*command, str(self.restarts)], srun_environment(os.environ), words, words
            )


def guard_command(log: Path, node: str) -> list[str]:
    """The guard's step, less the arguments of ``watch``; it shares what the ranks have (overlap).

    Also their GPUs: ``--gres=none`` is refused in a job with ``--gpus-per-node`` ("Invalid
    Trackable RESource (TRES) specification", 22.05.8).
    """
    flags = ["--overlap", "--no-kill", "--nodes=1", "--ntasks=1", f"--nodelist={node}"]
    flags += ["--cpus-per-task=1", f"--job-name={STEP_NAME}", "--input=none", "--export=ALL"]
    flags += [f"--output={str(log).replace('%', '%%')}", "--open-mode=append"]
    return ["srun", *flags, sys.executable, "-m", "submitrain.launcher.supervisor.guard"]


def watch(job_id: str, first_node: str, restarts: int) -> None:
    """Poll until the job is over; requeue it when it is orphaned.

    A job that may not be requeued is cancelled: it would hold its nodes for nothing.
    """
    while (seen := judge(show_job(job_id), first_node, restarts)) is not JobHealth.OVER:
        if seen is JobHealth.ORPHANED:
            log.warning("requeue", job_id=job_id, why=f"{first_node} and the supervisor are gone")
            answer = requeue_job(job_id)
            if answer.code not in (0, None) and "disabled" in answer.error:
                log.warning("cancel", job_id=job_id, why=answer.error, next_step=RESUME_HINT)
                scancel(job_id)
        time.sleep(POLL_EVERY_S if seen is JobHealth.FINE else ASK_AGAIN_S)


if __name__ == "__main__":
    watch(sys.argv[1], sys.argv[2], int(sys.argv[3]))
