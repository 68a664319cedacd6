"""Why a job can never run by its account or QOS, with the limit and who sets it.

Sources: sacctmgr(1), and resource_limits.html of Slurm's documentation.
"""

from __future__ import annotations

from collections.abc import Iterator

from submitrain.config.types import format_duration
from submitrain.launcher.checks.objections import BY_THE_SITE, JobRequest, above
from submitrain.slurm.cluster import Association, ClusterFacts, Limits, PartitionFacts


def accounting_objections(
    request: JobRequest, partition: PartitionFacts, facts: ClusterFacts
) -> Iterator[str]:
    """Accounts, QOS and their limits, as far as the site enforces them."""
    if not facts.associations or not facts.enforced & _ENFORCED:
        return  # nobody answered, or sbatch itself says that there is no account
    association = _association(request, partition, facts)
    if association is None:
        accounts = sorted({one.account for one in facts.associations})
        may = f"you may charge {', '.join(accounts)}"
        if facts.rewrites_requests:
            return
        if request.account and request.account not in accounts:
            yield f"slurm.account: not {request.account}: {may}"
        else:
            yield f"slurm.account: {may}, but not in partition {partition.name}"
        return
    account, qos = association.account, _qos_of(request, association)
    # In newer Slurm the accounts of a partition stand for those below them, too.
    if partition.accounts is not None and not facts.line_of(account) & partition.accounts:
        allowed = ", ".join(sorted(partition.accounts))
        yield f"slurm.account: partition {partition.name} takes {allowed}, not {account}"
    elif account in partition.denied_accounts:
        yield f"slurm.account: partition {partition.name} refuses {account} (DenyAccounts)"
    if "," in qos:
        return  # Slurm 24.11 takes one of several
    if "qos" in facts.enforced and qos and association.qos and qos not in association.qos:
        yield (
            f"slurm.qos: account {account} may use {', '.join(sorted(association.qos))}, not {qos}"
        )
        return
    if qos and (
        qos in partition.denied_qos or (partition.qos is not None and qos not in partition.qos)
    ):
        allowed = ", ".join(sorted(partition.qos or ())) or "others"
        yield f"slurm.qos: partition {partition.name} takes {allowed}, not {qos}"
    if facts.enforced & {"limits", "safe"}:
        yield from _of_limits(request, _limits(association, qos, partition, facts))


_LIFTING = frozenset(["PartitionTimeLimit", "PartitionMaxNodes", "PartitionMinNodes"])
_ENFORCED = frozenset(["associations", "limits", "qos", "safe", "wckeys", "all"])


def waived(request: JobRequest, partition: PartitionFacts, facts: ClusterFacts) -> frozenset[str]:
    """Flags of the job's QOS, of which some lift limits of the partition."""
    if facts.associations is None and not facts.has_accounting:
        return frozenset()
    qos = (facts.qos or {}).get(_qos_of(request, _association(request, partition, facts)))
    return _LIFTING if qos is None else qos.flags  # what nobody says is taken for lifted


def _qos_of(request: JobRequest, association: Association | None) -> str:
    """The QOS of the job: its own, else the association's default."""
    return request.qos or (association.default_qos if association else "")


def _association(
    request: JobRequest, partition: PartitionFacts, facts: ClusterFacts
) -> Association | None:
    """The association that the job will run under; None where there is none."""
    mine = [one for one in facts.associations or () if one.partition in ("", partition.name)]
    mine.sort(key=lambda one: one.partition == "")  # the partition's own goes first
    if request.account:
        return next((one for one in mine if one.account == request.account), None)
    return next((one for one in mine if one.is_default), mine[0] if mine else None)


def _limits(
    association: Association, qos: str, partition: PartitionFacts, facts: ClusterFacts
) -> list[Limits]:
    """Every set of limits that holds for the job; where two set the same limit, the first counts.

    Order: resource_limits.html, "Hierarchy".
    """
    known = facts.qos or {}
    of_qos = [known[name] for name in dict.fromkeys([partition.own_qos, qos]) if name in known]
    if of_qos and "OverPartQOS" in of_qos[-1].flags:
        of_qos.reverse()
    of_qos = [one for one in of_qos if "Relative" not in one.flags]  # those count per cent
    accounts = facts.account_limits.get(association.account, ())
    return [*of_qos, association.limits, *accounts]


_KEYS = {"node": "slurm.nodes", "cpu": "slurm.cpus_per_task", "mem": "slurm.mem"}


def _of_limits(request: JobRequest, order: list[Limits]) -> Iterator[str]:
    """Objections of the limits; one that an earlier set has does not count again."""
    set_before: set[tuple[str, str]] = set()
    for limits in order:
        for limit, name, problem in _compared(request, limits):
            if (limit, name) not in set_before and problem:
                yield problem
            set_before.add((limit, name))


def _compared(request: JobRequest, limits: Limits) -> Iterator[tuple[str, str, str]]:
    """Every limit that is set here: its name, what it counts, and the objection or nothing."""
    owner = limits.owner
    if limits.no_jobs:
        yield "MaxJobs", owner, f"slurm.account: {owner} allows no job at all ({BY_THE_SITE})"
    if limits.max_wall_s is not None:
        most, time = format_duration(limits.max_wall_s), format_duration(request.time_s)
        text = above("slurm.time", time, f"MaxWall of {owner}", most)
        yield "MaxWall", "", text if request.time_s > limits.max_wall_s else ""
    node = {"cpu": request.cpus, "mem": request.memory_mb, "gres/gpu": request.gpu_count}
    node |= {f"gres/gpu:{kind}": count for kind, count in request.gpus.items() if kind}
    whole = {"node": request.nodes, **{name: n * request.nodes for name, n in node.items()}}
    for limit, values, asked_of in (
        ("MaxTRESPerJob", limits.per_job, whole),
        ("MaxTRESPerUser", limits.per_user, whole),
        ("GrpTRES", limits.together, whole),
        ("MaxTRESPerNode", limits.per_node, node),
    ):
        for name, largest in values.items():
            key, asked = _KEYS.get(name, "slurm.gpus_per_node"), asked_of.get(name, 0)
            text = above(key, f"{name}={asked}", f"{limit} of {owner}", f"{name}={largest}")
            yield limit, name, text if asked > largest else ""
    for name, least in limits.at_least.items():
        key, asked = _KEYS.get(name, "slurm.gpus_per_node"), whole.get(name, 0)
        text = f"{key}: {name}={asked} is below MinTRES of {owner} ({name}={least}; {BY_THE_SITE})"
        grows = request.exclusive or not asked  # whole nodes, all memory, or not counted here
        yield "MinTRES", name, text if asked < least and (name == "node" or not grows) else ""
