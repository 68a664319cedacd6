"""Objections of accounting: accounts, QOS and the limits that a site enforces on them. Pure.

Sources: sacctmgr(1), and resource_limits.html of Slurm's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator

from launcher.verdict.facts import Association, ClusterFacts, Limits, PartitionFacts
from launcher.verdict.request import Request, memory_mb
from train.config.types import format_duration

BY_THE_SITE = "the site's administrators set it"


def above(key: str, asked: object, limit: str, value: object) -> str:
    return f"{key}: {asked} is above {limit} ({value}; {BY_THE_SITE}); ask for {value} or less"


def accounting_objections(
    request: Request, partition: PartitionFacts, facts: ClusterFacts
) -> Iterator[str]:
    """Accounts, QOS and their limits, as far as the site enforces them."""
    if facts.associations is None or not facts.enforced:
        return
    association, problem = _association(request, partition, facts)
    if problem:
        yield problem
        return
    account = association.account if association else request.account
    yield from _account_allowed(account, partition)
    qos = request.qos or (association.default_qos if association else "")
    if qos and association and association.qos and qos not in association.qos:
        yield (
            f"slurm.qos: account {account} may use {', '.join(sorted(association.qos))}, not {qos}"
        )
        return
    if qos and (
        qos in partition.denied_qos or (partition.qos is not None and qos not in partition.qos)
    ):
        allowed = ", ".join(sorted(partition.qos or ())) or "others"
        yield f"slurm.qos: partition {partition.name} takes {allowed}, not {qos}"
    if "limits" not in facts.enforced and "safe" not in facts.enforced:
        return
    for limits in _limits(association, qos, partition, facts):
        yield from _of_limits(request, limits, facts)


def _association(
    request: Request, partition: PartitionFacts, facts: ClusterFacts
) -> tuple[Association | None, str]:
    """The association that the job will run under, or why there is none."""
    mine = [one for one in facts.associations or () if one.partition in ("", partition.name)]
    accounts = sorted({one.account for one in mine})
    if request.account:
        found = next((one for one in mine if one.account == request.account), None)
        if found is None:
            may = f"you may charge {', '.join(accounts)}" if accounts else "you may charge none"
            return None, f"slurm.account: not {request.account}: {may}"
        return found, ""
    if not mine:
        return None, (
            f"slurm.account: {facts.user} has no account on this cluster; its administrators make "
            "one (sacctmgr add user)"
        )
    return next((one for one in mine if one.is_default), mine[0]), ""


def _account_allowed(account: str, partition: PartitionFacts) -> Iterator[str]:
    if partition.accounts is not None and account not in partition.accounts:
        allowed = ", ".join(sorted(partition.accounts))
        yield f"slurm.account: partition {partition.name} takes {allowed}, not {account}"
    elif account in partition.denied_accounts:
        yield f"slurm.account: partition {partition.name} refuses {account} (DenyAccounts)"


def _limits(
    association: Association | None, qos: str, partition: PartitionFacts, facts: ClusterFacts
) -> Iterator[Limits]:
    """Every set of limits that holds for the job."""
    if association is not None:
        yield association.limits
        yield from facts.account_limits.get(association.account, ())
    for name in dict.fromkeys([qos, partition.own_qos]):
        if name and facts.qos and name in facts.qos:
            yield facts.qos[name]


_KEYS = {"node": "slurm.nodes", "cpu": "slurm.cpus_per_task", "mem": "slurm.mem"}


def _of_limits(request: Request, limits: Limits, facts: ClusterFacts) -> Iterator[str]:
    if limits.no_jobs:
        yield f"slurm.account: {limits.owner} allows no job at all ({BY_THE_SITE})"
    if limits.max_wall_s is not None and request.time_s > limits.max_wall_s:
        most = format_duration(limits.max_wall_s)
        time = format_duration(request.time_s)
        yield above("slurm.time", time, f"MaxWall of {limits.owner}", most)
    node = _per_node(request, facts)
    whole = {"node": request.nodes, **{name: n * request.nodes for name, n in node.items()}}
    checks = (
        ("MaxTRESPerJob", limits.per_job, whole),
        ("MaxTRESPerUser", limits.per_user, whole),
        ("GrpTRES", limits.together, whole),
        ("MaxTRESPerNode", limits.per_node, node),
    )
    for limit, values, asked_of in checks:
        for name, largest in values.items():
            asked = asked_of.get(name, 0)
            if asked > largest:
                key = _KEYS.get(name, "slurm.gpus_per_node")
                yield above(
                    key, f"{name}={asked}", f"{limit} of {limits.owner}", f"{name}={largest}"
                )
    for name, least in limits.at_least.items():
        if whole.get(name, 0) < least:
            yield (
                f"{_KEYS.get(name, 'slurm.gpus_per_node')}: {name}={whole.get(name, 0)} is below "
                f"MinTRES of {limits.owner} ({name}={least}; {BY_THE_SITE})"
            )


def _per_node(request: Request, facts: ClusterFacts) -> dict[str, int]:
    values = {"cpu": request.cpus, "mem": memory_mb(request, facts), "gres/gpu": request.gpus}
    if request.gpu_type:
        values[f"gres/gpu:{request.gpu_type}"] = request.gpus
    return values
