"""What a private test cluster looks like, and what it needs on the host.

Imports the standard library only.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class PreemptMode(StrEnum):
    """What happens to a job that is preempted: back into the queue, or gone."""

    REQUEUE = "REQUEUE"
    CANCEL = "CANCEL"


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """The shape and the manners of one private cluster.

    The times are shorter than on real sites, so that tests end soon; every one of them is a
    plain Slurm setting and the cluster behaves the same with the usual values.
    """

    nodes: int = 4
    """Number of slurmd daemons; they are called node1 to nodeN."""
    cpus: int = 8
    """CPUs that each node claims (it need not have them)."""
    memory_mb: int = 16_000
    """Memory in MB that each node claims (it need not have it)."""
    gpus_per_node: int = 8
    """Pretended GPUs of type h100 in each node; 0 for none."""
    accounting: bool = True
    """Run slurmdbd and MariaDB; preemption is then by QOS, otherwise by partition."""
    accounts: tuple[str, ...] = ("research", "teaching")
    """Accounts the current user may charge; the first is the default. Only with accounting."""
    preempt_notice_s: int | None = None
    """Seconds between the warning signal and the end (GraceTime); None: no warning at all."""
    preempt_mode: PreemptMode = PreemptMode.REQUEUE
    """Whether Slurm requeues or cancels what it preempts."""
    kill_wait_s: int = 10
    """Seconds between SIGTERM and SIGKILL (KillWait; 30 on real sites)."""
    slurmd_timeout_s: int = 15
    """Seconds after which a silent node is DOWN (SlurmdTimeout; 300 on real sites)."""
    cred_expire_s: int = 5
    """Lifetime of a job credential; a requeued job waits one second longer (120 by default)."""
    min_job_age_s: int = 300
    """Seconds for which scontrol still shows an ended job (MinJobAge)."""
    max_time: str = "7-00:00:00"
    """Longest time limit in both partitions (MaxTime)."""
    extra_slurm_conf: tuple[str, ...] = ()
    """Further lines for slurm.conf, put before the nodes and the partitions."""

    def __post_init__(self) -> None:
        _require_at_least("nodes", self.nodes, 1)
        _require_at_least("cpus", self.cpus, 1)
        _require_at_least("memory_mb", self.memory_mb, 1)
        _require_at_least("gpus_per_node", self.gpus_per_node, 0)
        _require_at_least("slurmd_timeout_s", self.slurmd_timeout_s, 1)
        if self.preempt_notice_s is not None:
            _require_at_least("preempt_notice_s", self.preempt_notice_s, 1)
        if self.accounting and not self.accounts:
            raise ValueError("ClusterOptions.accounts: expected one name at least, got none")

    @property
    def node_names(self) -> tuple[str, ...]:
        """The names of the nodes, in order."""
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))


def _require_at_least(field: str, value: int, minimum: int) -> None:
    if value < minimum:
        raise ValueError(f"ClusterOptions.{field}: expected an integer >= {minimum}, got {value}")


PROGRAM_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "slurmctld": "slurmctld",
        "slurmd": "slurmd",
        "srun": "slurm-client",
        "sbatch": "slurm-client",
        "munged": "munge",
        "unshare": "util-linux",
    }
)
"""Program to Debian package, for every cluster."""

ACCOUNTING_PACKAGES: Mapping[str, str] = MappingProxyType(
    {
        "slurmdbd": "slurmdbd",
        "sacctmgr": "slurm-client",
        "mariadbd": "mariadb-server",
        "mariadb-install-db": "mariadb-server",
    }
)
"""Program to Debian package, in addition, for a cluster with accounting."""


def search_path() -> str:
    """Return PATH with the folders in which Debian keeps daemons, also for plain users."""
    folders = os.environ.get("PATH", os.defpath).split(os.pathsep)
    daemons = ("/usr/local/sbin", "/usr/sbin", "/sbin", "/usr/local/bin", "/usr/bin", "/bin")
    return os.pathsep.join([*folders, *(one for one in daemons if one not in folders)])


def missing_packages(
    options: ClusterOptions | None = None, *, path: str | None = None
) -> list[str]:
    """Return the Debian packages to install before such a cluster can start, sorted.

    `path` is where programs are looked for, by default `search_path()`.
    """
    wanted = dict(PROGRAM_PACKAGES)
    if options is None or options.accounting:
        wanted |= ACCOUNTING_PACKAGES
    path = search_path() if path is None else path
    return sorted({pkg for name, pkg in wanted.items() if shutil.which(name, path=path) is None})


def install_hint(packages: list[str]) -> str:
    """Return the command that installs these packages."""
    return f"sudo apt-get install --no-install-recommends {' '.join(packages)}"
