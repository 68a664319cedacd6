"""What a Slurm cluster has and allows, as far as a request for nodes is concerned.

What nobody answered is None: unknown, never "no limit".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

_NOT_UP = frozenset(["DOWN", "DRAIN", "DRAINED", "DRAINING", "FAIL", "FAILING", "INVAL", "UNKNOWN"])
_NOT_UP_FLAGS = _NOT_UP | frozenset(["NOT_RESPONDING", "INVALID_REG", "MAINT", "POWERING_DOWN"])


@dataclass(frozen=True)
class NodeFacts:
    """One node; memory in MiB."""

    name: str
    state: str
    flags: frozenset[str]
    partitions: frozenset[str]
    cpus: int
    free_cpus: int
    memory_mb: int
    free_memory_mb: int
    gpus: Mapping[str, int]
    """By type; the type is empty where the site gives none."""
    free_gpus: int
    features: frozenset[str]

    @property
    def is_up(self) -> bool:
        """Whether it takes jobs now, or once those on it have ended."""
        return self.state not in _NOT_UP and not self.flags & _NOT_UP_FLAGS

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs on it."""
        return self.is_up and self.state == "IDLE"


@dataclass(frozen=True)
class PartitionFacts:
    """One partition; limits are None where it sets none."""

    name: str
    is_default: bool
    state: str
    max_time_s: int | None
    max_nodes: int | None
    min_nodes: int
    max_cpus_per_node: int | None
    max_memory_mb: int | None
    nodes: frozenset[str]
    accounts: frozenset[str] | None
    denied_accounts: frozenset[str]
    qos: frozenset[str] | None
    denied_qos: frozenset[str]
    alternate: str
    """Partition that takes its jobs while it is closed; empty for none."""
    own_qos: str
    """QOS whose limits hold for every job of the partition; empty for none."""

    @property
    def is_open(self) -> bool:
        """Whether its jobs start; those of a partition that is DOWN wait until it is opened."""
        return self.state == "UP"


@dataclass(frozen=True)
class Limits:
    """Limits of an association or a QOS; TRES by Slurm's names (``node``, ``gres/gpu``, ``cpu``).

    sacctmgr(1), "SPECIFICATIONS FOR ASSOCIATIONS" and "FOR QOS". ``together`` are Grp* limits: for
    all jobs at once, and so for one job as well.
    """

    owner: str
    max_wall_s: int | None = None
    per_job: Mapping[str, int] = field(default_factory=dict)
    per_node: Mapping[str, int] = field(default_factory=dict)
    per_user: Mapping[str, int] = field(default_factory=dict)
    together: Mapping[str, int] = field(default_factory=dict)
    at_least: Mapping[str, int] = field(default_factory=dict)
    no_jobs: bool = False
    """Whether a limit on the number of jobs is 0."""
    flags: frozenset[str] = frozenset()
    """Of a QOS, such as PartitionTimeLimit: jobs of it may exceed that limit of their partition."""


@dataclass(frozen=True)
class Association:
    """One account that the user may charge."""

    account: str
    partition: str
    qos: frozenset[str]
    default_qos: str
    is_default: bool
    limits: Limits


@dataclass(frozen=True)
class Reservation:
    """Nodes set aside; times in seconds since the epoch."""

    name: str
    nodes: frozenset[str]
    users: frozenset[str]
    accounts: frozenset[str]
    ends_at: float | None
    starts_at: float | None = None
    partition: str = ""
    """Of jobs that name the reservation and no partition."""
    is_flexible: bool = False
    """Whether its jobs may use other nodes as well (FLEX)."""


@dataclass(frozen=True)
class ClusterFacts:
    """Everything that a verdict needs; None where nobody answered."""

    nodes: Mapping[str, NodeFacts]
    partitions: Mapping[str, PartitionFacts]
    settings: Mapping[str, str]
    user: str = ""
    associations: tuple[Association, ...] | None = None
    account_limits: Mapping[str, tuple[Limits, ...]] = field(default_factory=dict)
    """Of an account and those above it."""
    parents: Mapping[str, str] = field(default_factory=dict)
    """The account above each."""
    qos: Mapping[str, Limits] | None = None
    reservations: Mapping[str, Reservation] | None = None

    @property
    def default_partition(self) -> str | None:
        """The partition of a request that names none."""
        return next((one.name for one in self.partitions.values() if one.is_default), None)

    @property
    def has_accounting(self) -> bool:
        """Whether there is a slurmdbd that could know of accounts and QOS."""
        return self.settings.get("AccountingStorageType", "").endswith("/slurmdbd")

    @property
    def rewrites_requests(self) -> bool:
        """Whether a plugin of the site may choose partition, account or QOS at submission."""
        return self.settings.get("JobSubmitPlugins", "(null)") not in ("", "(null)")

    def line_of(self, account: str) -> frozenset[str]:
        """An account and those above it."""
        line: list[str] = []
        while account and account not in line:
            line.append(account)
            account = self.parents.get(account, "")
        return frozenset(line)

    @property
    def enforced(self) -> frozenset[str]:
        """Words of AccountingStorageEnforce: associations, limits, qos, ...; empty for none."""
        words = self.settings.get("AccountingStorageEnforce", "").lower()
        return frozenset(word for word in re.split(r"[,\s]+", words) if word)
