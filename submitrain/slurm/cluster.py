"""What a Slurm cluster has and allows: nodes, partitions, limits, accounts, reservations. Pure.

Read from the output of ``scontrol show ... --oneliner``, ``sacctmgr -nP`` and sinfo. What nobody
answered is None: unknown, never "no limit".
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from submitrain.slurm.parse import (
    UNLIMITED,
    count_of,
    duration_s,
    expand_nodes,
    leading_integer,
    names_of,
    parse_gres,
    parse_records,
    parse_rows,
    parse_tres,
)

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


def _allowed(text: str) -> frozenset[str] | None:
    return None if text in ("", "ALL", "(null)") else names_of(text.lower())


def parse_nodes(text: str) -> dict[str, NodeFacts]:
    """Nodes of ``scontrol show node --oneliner``."""
    found = {}
    for fields in parse_records(text):
        state, *flags = fields.get("State", "UNKNOWN").upper().rstrip("*~#%$@^!-").split("+")
        if "*" in fields.get("State", ""):
            flags.append("NOT_RESPONDING")
        cpus = int(fields.get("CPUEfctv") or fields.get("CPUTot") or 0)
        memory = int(fields.get("RealMemory") or 0)
        used = parse_tres(fields.get("AllocTRES", ""))
        gpus = parse_gres(fields.get("Gres", ""))
        found[fields["NodeName"]] = NodeFacts(
            name=fields["NodeName"],
            state=state,
            flags=frozenset(flags),
            partitions=names_of(fields.get("Partitions", "")),
            cpus=cpus,
            free_cpus=cpus - int(fields.get("CPUAlloc") or 0),
            memory_mb=memory,
            free_memory_mb=memory - int(fields.get("AllocMem") or 0),
            gpus=gpus,
            free_gpus=sum(gpus.values()) - used.get("gres/gpu", 0),
            features=names_of(fields.get("AvailableFeatures", ""))
            | names_of(fields.get("ActiveFeatures", "")),
        )
    return found


def parse_partitions(text: str) -> dict[str, PartitionFacts]:
    """Partitions of ``scontrol show partition --oneliner``."""
    found = {}
    for fields in parse_records(text):
        own = fields.get("QoS", "")
        found[fields["PartitionName"]] = PartitionFacts(
            name=fields["PartitionName"],
            is_default=fields.get("Default") == "YES",
            state=fields.get("State", "UNKNOWN"),
            max_time_s=duration_s(fields.get("MaxTime", "")),
            max_nodes=count_of(fields.get("MaxNodes", "")),
            min_nodes=count_of(fields.get("MinNodes", "")) or 0,
            max_cpus_per_node=count_of(fields.get("MaxCPUsPerNode", "")),
            max_memory_mb=count_of(fields.get("MaxMemPerNode", "")),
            nodes=frozenset(expand_nodes(fields.get("Nodes", "").replace("(null)", ""))),
            accounts=_allowed(fields.get("AllowAccounts", "ALL")),
            denied_accounts=names_of(fields.get("DenyAccounts", "").lower()),
            qos=_allowed(fields.get("AllowQos", "ALL")),
            denied_qos=names_of(fields.get("DenyQos", "").lower()),
            alternate="" if fields.get("Alternate", "") in UNLIMITED else fields["Alternate"],
            own_qos="" if own in UNLIMITED else own,
        )
    return found


def parse_settings(text: str) -> dict[str, str]:
    """Settings of ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def parse_reservations(text: str) -> dict[str, Reservation]:
    """Reservations of ``scontrol show reservation --oneliner`` (times as epoch seconds)."""
    found = {}
    for fields in parse_records(text):
        if "ReservationName" not in fields:
            continue
        name, ends = fields["ReservationName"], fields.get("EndTime", "")
        starts = fields.get("StartTime", "")
        found[name] = Reservation(
            name=name,
            nodes=frozenset(expand_nodes(fields.get("Nodes", "").replace("(null)", ""))),
            users=names_of(fields.get("Users", "")),
            accounts=names_of(fields.get("Accounts", "")),
            ends_at=float(ends) if ends.isdigit() else None,
            starts_at=float(starts) if starts.isdigit() else None,
            partition=fields.get("PartitionName", "").replace("(null)", ""),
            is_flexible="FLEX" in fields.get("Flags", "").upper().split(","),
        )
    return found


_LIMIT_FIELDS = "MaxWall,MaxTRES,MaxTRESPerNode,GrpTRES,MaxJobs,GrpJobs,MaxSubmitJobs,GrpSubmitJobs"
USER_FIELDS = f"DefaultAccount,Account,Partition,QOS,DefaultQOS,{_LIMIT_FIELDS}"
ACCOUNT_FIELDS = f"Account,ParentName,{_LIMIT_FIELDS}"
QOS_FIELDS = (
    "Name,MaxWall,MaxTRES,MaxTRESPerNode,GrpTRES,MaxJobsPU,GrpJobs,MaxSubmitJobsPU,GrpSubmitJobs,"
    "MinTRES,MaxTRESPU,Flags"
)


def _limits(owner: str, row: Mapping[str, str]) -> Limits:
    counts = ("MaxJobs", "GrpJobs", "MaxSubmitJobs", "GrpSubmitJobs", "MaxJobsPU")
    return Limits(
        owner=owner,
        max_wall_s=duration_s(row.get("MaxWall", "")),
        per_job=parse_tres(row.get("MaxTRES", "")),
        per_node=parse_tres(row.get("MaxTRESPerNode", "")),
        per_user=parse_tres(row.get("MaxTRESPU", "")),
        together=parse_tres(row.get("GrpTRES", "")),
        at_least=parse_tres(row.get("MinTRES", "")),
        no_jobs=any(row.get(name) == "0" for name in (*counts, "MaxSubmitJobsPU")),
        flags=names_of(row.get("Flags", "")),
    )


def parse_associations(text: str) -> tuple[Association, ...]:
    """A user's associations, of ``sacctmgr -nP show user NAME withassoc``; Max* are inherited."""
    return tuple(
        Association(
            account=row["Account"],
            partition=row["Partition"],
            qos=names_of(row["QOS"]),
            default_qos=row["DefaultQOS"],
            is_default=row["Account"] == row["DefaultAccount"],
            limits=_limits(f"your association with account {row['Account']}", row),
        )
        for row in parse_rows(text, USER_FIELDS, "|")
        if row["Account"]
    )


def parse_accounts(text: str) -> dict[str, tuple[Limits, ...]]:
    """Limits of every account and of those above it, of ``sacctmgr -nP show assoc user=``."""
    rows = {row["Account"]: row for row in parse_rows(text, ACCOUNT_FIELDS, "|")}
    return {name: tuple(_chain(name, rows)) for name in rows}


def parse_parents(text: str) -> dict[str, str]:
    """The account above each account, of the same output."""
    return {row["Account"]: row["ParentName"] for row in parse_rows(text, ACCOUNT_FIELDS, "|")}


def _chain(name: str, rows: Mapping[str, Mapping[str, str]]) -> Iterator[Limits]:
    seen: set[str] = set()
    while name in rows and name not in seen:
        seen.add(name)
        yield _limits(f"account {name}", rows[name])
        name = rows[name]["ParentName"]


def parse_qos(text: str) -> dict[str, Limits]:
    """Limits of every QOS, of ``sacctmgr -nP show qos``."""
    rows = parse_rows(text, QOS_FIELDS, "|")
    return {row["Name"]: _limits(f"QOS {row['Name']}", row) for row in rows}


@dataclass(frozen=True)
class Partition:
    """A partition, as its largest group of equal nodes shows it."""

    name: str
    up: bool
    default: bool
    nodes: int
    cpus: int
    memory_mb: int
    gpus: int = 0
    gpu_type: str = ""
    max_s: int | None = None
    """Longest job in seconds; None = not limited, or not known."""


@dataclass(frozen=True)
class ClusterInventory:
    """Partitions in Slurm's order, and the user's accounts, the default one first."""

    partitions: tuple[Partition, ...] = ()
    accounts: tuple[str, ...] = ()
    kill_wait_s: int | None = None
    """Seconds between TERM and KILL there."""
    problem: str = ""
    """Why partitions are not known."""

    def best(self) -> Partition | None:
        """Where a training belongs: GPUs before none, then the default one, then the largest."""
        able = [one for one in self.partitions if one.up] or list(self.partitions)
        return max(able, key=lambda one: (one.gpus > 0, one.default, one.nodes), default=None)


SINFO_FIELDS = "%R,%a,%l,%D,%c,%m,%G,%P"
_GPU = re.compile(r"gpu:(?:(?P<type>[A-Za-z][\w.-]*):)?(?P<count>\d+)")


def parse_sinfo(text: str) -> list[Partition]:
    """Partitions of sinfo's rows of ``SINFO_FIELDS``; of several rows the largest group."""
    found: dict[str, Partition] = {}
    for row in parse_rows(text, SINFO_FIELDS):
        gpu = _GPU.search(row["%G"])
        one = Partition(
            name=row["%R"],
            up=row["%a"] == "up",
            default=row["%P"].endswith("*"),
            nodes=leading_integer(row["%D"]) or 0,
            cpus=leading_integer(row["%c"]) or 0,
            memory_mb=leading_integer(row["%m"]) or 0,
            gpus=int(gpu["count"]) if gpu else 0,
            gpu_type=(gpu["type"] or "") if gpu else "",
            max_s=duration_s(row["%l"]),
        )
        known = found.get(one.name)
        if known is None or (one.gpus, one.nodes) > (known.gpus, known.nodes):
            found[one.name] = one
    return list(found.values())


_USABLE = ("idle", "alloc", "mix", "comp", "plnd", "planned", "resv")


def usable_nodes(text: str) -> frozenset[str]:
    """Of sinfo's lines ``node state``, the nodes that are up: ``idle*`` does not answer."""
    pairs = [line.split() for line in text.splitlines()]
    return frozenset(
        pair[0]
        for pair in pairs
        if len(pair) == 2 and pair[1].startswith(_USABLE) and not pair[1].endswith(("*", "-", "$"))
    )
