"""Slurm commands against one private cluster."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Callable, Collection
from pathlib import Path

from tests.cluster.daemon import SlurmClusterError
from tests.cluster.jobs import parse_job
from tests.cluster.options import ClusterOptions, search_path

ENDED = frozenset(
    [
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "TIMEOUT",
    ]
)
"""Job states that do not change any more (squeue(1)), unless the job is requeued."""


def clean_environment(slurm_conf: Path) -> dict[str, str]:
    """Return this process's environment for one cluster, without what another Slurm left in it."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_"))
    }
    return {**inherited, "SLURM_CONF": str(slurm_conf), "PATH": search_path()}


def wait_until(
    condition: Callable[[], bool],
    *,
    what: str,
    timeout_s: float,
    details: Callable[[], str] = str,
) -> None:
    """Ask again and again; raise SlurmClusterError with the details when the time is over."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise SlurmClusterError(
                f"waited {timeout_s:g} s in vain for {what}\n{details()}".rstrip()
            )
        time.sleep(0.1)


class SlurmClient:
    """Submits to a cluster and asks it; knows nothing about its daemons."""

    def __init__(self, options: ClusterOptions, slurm_conf: Path) -> None:
        self.options = options
        self._slurm_conf = slurm_conf

    @property
    def env(self) -> dict[str, str]:
        """The two variables to export (SLURM_CONF, PATH) so that commands reach this cluster."""
        return {"SLURM_CONF": str(self._slurm_conf), "PATH": search_path()}

    def run(self, *command: str, check: bool = True, timeout_s: float = 60) -> str:
        """Run a command against this cluster and return its standard output.

        Raises SlurmClusterError with both outputs if it exits with another code than 0 and
        `check` is set, and if it takes too long.
        """
        try:
            done = subprocess.run(
                command,
                env=clean_environment(self._slurm_conf),
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise SlurmClusterError(
                f"`{' '.join(command)}` took more than {timeout_s:g} s"
            ) from error
        if check and done.returncode != 0:
            raise SlurmClusterError(
                f"`{' '.join(command)}` exited {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done.stdout

    def sbatch(self, script: str, *arguments: str, output: Path | None = None) -> int:
        """Submit a shell script and return the job id; the output is dropped by default."""
        where = f"--output={output or '/dev/null'}"
        return int(self.run("sbatch", "--parsable", where, *arguments, f"--wrap={script}"))

    def submit_high_priority_job(
        self, *, nodes: int, seconds: float, nodelist: str | None = None
    ) -> int:
        """Submit a job that takes whole nodes away from others (preempts), and return its id.

        `nodelist` says which nodes, as a host list.
        """
        qos = ["--qos=high"] if self.options.accounting else []
        shape = ["--job-name=high", "--partition=high", f"--nodes={nodes}", "--exclusive"]
        where = [f"--nodelist={nodelist}"] if nodelist else []
        return self.sbatch(f"sleep {seconds}", *shape, *where, *qos)

    def job(self, job_id: int) -> dict[str, str]:
        """Return the fields of `scontrol show job`; SlurmClusterError if Slurm forgot the job."""
        return parse_job(self.run("scontrol", "show", "job", "--oneliner", str(job_id)))

    def wait_for_state(
        self, job_id: int, states: str | Collection[str], *, timeout_s: float = 60
    ) -> dict[str, str]:
        """Wait until a job is in one of these states, and return its fields.

        Raises SlurmClusterError that shows the job when the time is over, and at once when it has
        ended in a state that was not asked for.
        """
        wanted = {states} if isinstance(states, str) else set(states)
        what = f"job {job_id} to be {' or '.join(sorted(wanted))}"
        fields: dict[str, str] = {}

        def arrived() -> bool:
            fields.clear()
            fields.update(self.job(job_id))
            state = fields["JobState"]
            if state in ENDED and state not in wanted and not wanted - ENDED:
                raise SlurmClusterError(f"waited for {what}, but it is {state}\n{fields}")
            return state in wanted

        wait_until(arrived, what=what, timeout_s=timeout_s, details=lambda: str(fields))
        return fields

    def node_states(self) -> dict[str, str]:
        """Return the state of every node as sinfo prints it, such as idle, mixed, down*."""
        lines = self.run("sinfo", "--noheader", "--format=%n %T", "--partition=normal")
        return dict(line.split(maxsplit=1) for line in lines.splitlines())

    def cancel_all(self) -> None:
        """Cancel every job of the cluster."""
        self.run("scancel", "--full", "--quiet", f"--user={os.getuid()}", check=False)

    def wait_idle(self, *, timeout_s: float = 60) -> None:
        """Wait until all nodes are idle."""
        wait_until(
            lambda: set(self.node_states().values()) == {"idle"},
            what="all nodes to be idle",
            timeout_s=timeout_s,
            details=lambda: f"{self.node_states()}\n{self.run('squeue', check=False)}",
        )
