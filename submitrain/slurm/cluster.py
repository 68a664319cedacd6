"""Reads Slurm's own words about its cluster: pure parsers, and ``read_cluster``, which asks.

The output is that of ``scontrol show ... --oneliner`` and ``sacctmgr -nP`` of Slurm 22.05 and
later; a handful of calls with a time limit each.

What a Slurm cluster has and allows, as far as a request for nodes is concerned.

What nobody answered is None: unknown, never "no limit".
"""

from __future__ import annotations

import getpass
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from submitrain.config.types import parse_duration_s
from submitrain.slurm.client import Ask, ask, parse_scontrol
from submitrain.slurm.parse import expand_nodes

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


ASK_TIMEOUT_S = 5.0
_UNLIMITED = frozenset(["", "UNLIMITED", "INFINITE", "N/A", "NONE", "(null)", "-1"])
_UNITS = {"": 1, "K": 2**-10, "M": 1, "G": 2**10, "T": 2**20, "P": 2**30}


def _names(text: str) -> frozenset[str]:
    return frozenset(name for name in text.split(",") if name and name not in _UNLIMITED)


def _allowed(text: str) -> frozenset[str] | None:
    return None if text in ("", "ALL", "(null)") else _names(text.lower())


def _count(text: str) -> int | None:
    return None if text.upper() in _UNLIMITED or not text.isdigit() else int(text)


def _duration(text: str) -> int | None:
    if text.upper() in _UNLIMITED:
        return None
    try:
        return parse_duration_s(text)
    except ValueError:
        return None


def megabytes(text: str) -> int | None:
    """MiB of Slurm's ``64G``, ``16000M`` or ``16000`` (MiB); None for anything else."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([KMGTP]?)[Bnc]?", text.strip())
    return int(float(match[1]) * _UNITS[match[2]]) if match else None


def parse_tres(text: str) -> dict[str, int]:
    """``cpu=32,mem=64G,node=4,gres/gpu=8`` as numbers; memory in MiB."""
    found: dict[str, int] = {}
    for part in text.split(","):
        name, equals, value = part.partition("=")
        number = megabytes(value) if name == "mem" else _count(value)
        if equals and number is not None:
            found[name.strip()] = number
    return found


def parse_gres(text: str) -> dict[str, int]:
    """GPUs by type in a node's ``Gres=gpu:h100:8(S:0-1),gpu:a100:2``."""
    found: dict[str, int] = {}
    for part in re.sub(r"\([^)]*\)", "", text).split(","):
        name, *rest = part.split(":")
        if name != "gpu" or not rest or not rest[-1].isdigit():
            continue
        kind = rest[0] if len(rest) > 1 else ""
        found[kind] = found.get(kind, 0) + int(rest[-1])
    return found


def _records(text: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        if "=" in line:  # not "No reservations in the system"
            yield parse_scontrol(line)


def parse_nodes(text: str) -> dict[str, NodeFacts]:
    """Nodes of ``scontrol show node --oneliner``."""
    found = {}
    for fields in _records(text):
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
            partitions=_names(fields.get("Partitions", "")),
            cpus=cpus,
            free_cpus=cpus - int(fields.get("CPUAlloc") or 0),
            memory_mb=memory,
            free_memory_mb=memory - int(fields.get("AllocMem") or 0),
            gpus=gpus,
            free_gpus=sum(gpus.values()) - used.get("gres/gpu", 0),
            features=_names(fields.get("AvailableFeatures", ""))
            | _names(fields.get("ActiveFeatures", "")),
        )
    return found


def parse_partitions(text: str) -> dict[str, PartitionFacts]:
    """Partitions of ``scontrol show partition --oneliner``."""
    found = {}
    for fields in _records(text):
        own = fields.get("QoS", "")
        found[fields["PartitionName"]] = PartitionFacts(
            name=fields["PartitionName"],
            is_default=fields.get("Default") == "YES",
            state=fields.get("State", "UNKNOWN"),
            max_time_s=_duration(fields.get("MaxTime", "")),
            max_nodes=_count(fields.get("MaxNodes", "")),
            min_nodes=_count(fields.get("MinNodes", "")) or 0,
            max_cpus_per_node=_count(fields.get("MaxCPUsPerNode", "")),
            max_memory_mb=_count(fields.get("MaxMemPerNode", "")),
            nodes=frozenset(expand_nodes(fields.get("Nodes", "").replace("(null)", ""))),
            accounts=_allowed(fields.get("AllowAccounts", "ALL")),
            denied_accounts=_names(fields.get("DenyAccounts", "").lower()),
            qos=_allowed(fields.get("AllowQos", "ALL")),
            denied_qos=_names(fields.get("DenyQos", "").lower()),
            alternate="" if fields.get("Alternate", "") in _UNLIMITED else fields["Alternate"],
            own_qos="" if own in _UNLIMITED else own,
        )
    return found


def parse_settings(text: str) -> dict[str, str]:
    """Settings of ``scontrol show config``."""
    pairs = (line.partition("=") for line in text.splitlines())
    return {name.strip(): value.strip() for name, equals, value in pairs if equals}


def parse_reservations(text: str) -> dict[str, Reservation]:
    """Reservations of ``scontrol show reservation --oneliner`` (times as epoch seconds)."""
    found = {}
    for fields in _records(text):
        if "ReservationName" not in fields:
            continue
        name, ends = fields["ReservationName"], fields.get("EndTime", "")
        starts = fields.get("StartTime", "")
        found[name] = Reservation(
            name=name,
            nodes=frozenset(expand_nodes(fields.get("Nodes", "").replace("(null)", ""))),
            users=_names(fields.get("Users", "")),
            accounts=_names(fields.get("Accounts", "")),
            ends_at=float(ends) if ends.isdigit() else None,
            starts_at=float(starts) if starts.isdigit() else None,
            partition=fields.get("PartitionName", "").replace("(null)", ""),
            is_flexible="FLEX" in fields.get("Flags", "").upper().split(","),
        )
    return found


_LIMIT_FIELDS = "MaxWall,MaxTRES,MaxTRESPerNode,GrpTRES,MaxJobs,GrpJobs,MaxSubmitJobs,GrpSubmitJobs"
_USER_FIELDS = f"DefaultAccount,Account,Partition,QOS,DefaultQOS,{_LIMIT_FIELDS}"
_ACCOUNT_FIELDS = f"Account,ParentName,{_LIMIT_FIELDS}"
_QOS_FIELDS = (
    "Name,MaxWall,MaxTRES,MaxTRESPerNode,GrpTRES,MaxJobsPU,GrpJobs,MaxSubmitJobsPU,GrpSubmitJobs,"
    "MinTRES,MaxTRESPU,Flags"
)


def _limits(owner: str, row: Mapping[str, str]) -> Limits:
    counts = ("MaxJobs", "GrpJobs", "MaxSubmitJobs", "GrpSubmitJobs", "MaxJobsPU")
    return Limits(
        owner=owner,
        max_wall_s=_duration(row.get("MaxWall", "")),
        per_job=parse_tres(row.get("MaxTRES", "")),
        per_node=parse_tres(row.get("MaxTRESPerNode", "")),
        per_user=parse_tres(row.get("MaxTRESPU", "")),
        together=parse_tres(row.get("GrpTRES", "")),
        at_least=parse_tres(row.get("MinTRES", "")),
        no_jobs=any(row.get(name) == "0" for name in (*counts, "MaxSubmitJobsPU")),
        flags=_names(row.get("Flags", "")),
    )


def _rows(text: str, names: str) -> Iterator[dict[str, str]]:
    for line in text.splitlines():
        values = line.split("|")
        if len(values) >= len(names.split(",")):
            yield dict(zip(names.split(","), values, strict=False))


def parse_associations(text: str) -> tuple[Association, ...]:
    """A user's associations, of ``sacctmgr -nP show user NAME withassoc``; Max* are inherited."""
    return tuple(
        Association(
            account=row["Account"],
            partition=row["Partition"],
            qos=_names(row["QOS"]),
            default_qos=row["DefaultQOS"],
            is_default=row["Account"] == row["DefaultAccount"],
            limits=_limits(f"your association with account {row['Account']}", row),
        )
        for row in _rows(text, _USER_FIELDS)
        if row["Account"]
    )


def parse_accounts(text: str) -> dict[str, tuple[Limits, ...]]:
    """Limits of every account and of those above it, of ``sacctmgr -nP show assoc user=``."""
    rows = {row["Account"]: row for row in _rows(text, _ACCOUNT_FIELDS)}
    return {name: tuple(_chain(name, rows)) for name in rows}


def parse_parents(text: str) -> dict[str, str]:
    """The account above each account, of the same output."""
    return {row["Account"]: row["ParentName"] for row in _rows(text, _ACCOUNT_FIELDS)}


def _chain(name: str, rows: Mapping[str, Mapping[str, str]]) -> Iterator[Limits]:
    seen: set[str] = set()
    while name in rows and name not in seen:
        seen.add(name)
        yield _limits(f"account {name}", rows[name])
        name = rows[name]["ParentName"]


def parse_qos(text: str) -> dict[str, Limits]:
    """Limits of every QOS, of ``sacctmgr -nP show qos``."""
    return {row["Name"]: _limits(f"QOS {row['Name']}", row) for row in _rows(text, _QOS_FIELDS)}


def read_cluster(*, run: Ask = ask, user: str | None = None) -> ClusterFacts | None:
    """Ask Slurm; None when its controller does not say what nodes and partitions it has."""
    user = user or getpass.getuser()
    nodes = _ask(run, "scontrol", "--all", "show", "node", "--oneliner")
    partitions = _ask(run, "scontrol", "--all", "show", "partition", "--oneliner")
    settings = parse_settings(_ask(run, "scontrol", "show", "config") or "")
    if not nodes or not partitions or not settings:
        return None
    reservations = _ask(run, "scontrol", "show", "reservation", "--oneliner")
    accounting = ClusterFacts({}, {}, settings).has_accounting
    mine = accounts = qos = None
    if accounting:
        where = ["where", f"cluster={settings.get('ClusterName', '')}"]
        show = ("sacctmgr", "--noheader", "--parsable2", "--readonly", "show")
        mine = _ask(run, *show, "user", user, "withassoc", f"format={_USER_FIELDS}", *where)
        if mine is not None:
            accounts = _ask(run, *show, "assoc", *where, "user=", f"format={_ACCOUNT_FIELDS}")
            qos = _ask(run, *show, "qos", f"format={_QOS_FIELDS}")
    return ClusterFacts(
        nodes=parse_nodes(nodes),
        partitions=parse_partitions(partitions),
        settings=settings,
        user=user,
        associations=None if mine is None else parse_associations(mine),
        account_limits=parse_accounts(accounts or ""),
        parents=parse_parents(accounts or ""),
        qos=None if qos is None else parse_qos(qos),
        reservations=None if reservations is None else parse_reservations(reservations),
    )


def _ask(run: Ask, *command: str) -> str | None:
    answer = run(command, timeout_s=ASK_TIMEOUT_S)
    return answer.out if answer.code == 0 else None
