"""Objections of partitions, nodes and reservations, and which nodes a request could get. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from submitrain.config.types import format_duration
from submitrain.launcher.checks.limits import BY_THE_SITE, Request, above, memory_mb
from submitrain.slurm.cluster import ClusterFacts, NodeFacts, PartitionFacts


def partition_objections(
    request: Request, partition: PartitionFacts, waived: frozenset[str]
) -> Iterator[str]:
    """Limits of the partition; ``waived`` are the QOS's flags that lift some (sacctmgr(1))."""
    name = f"partition {partition.name}"
    if partition.state in ("INACTIVE", "DRAIN") and not partition.alternate:
        yield (
            f"slurm.partition: {name} is {partition.state.lower()}: it takes no jobs; take another "
            "one, or ask when it is back"
        )
    too_long = partition.max_time_s is not None and request.time_s > partition.max_time_s
    if partition.max_time_s is not None and too_long and "PartitionTimeLimit" not in waived:
        yield above(
            "slurm.time",
            format_duration(request.time_s),
            f"MaxTime of {name}",
            format_duration(partition.max_time_s),
        )
    most = None if "PartitionMaxNodes" in waived else partition.max_nodes
    if most is not None and request.nodes > most:
        yield above("slurm.nodes", request.nodes, f"MaxNodes of {name}", most)
    if request.max_nodes < partition.min_nodes and "PartitionMinNodes" not in waived:
        yield (
            f"slurm.nodes: {request.max_nodes} is below MinNodes of {name} ({partition.min_nodes}; "
            f"{BY_THE_SITE})"
        )
    cpus = partition.max_cpus_per_node
    if cpus is not None and request.cpus > cpus:
        yield above("slurm.cpus_per_task", request.cpus, f"MaxCPUsPerNode of {name}", cpus)


def node_objections(
    request: Request, partition: PartitionFacts, facts: ClusterFacts
) -> Iterator[str]:
    """Whether the partition has enough nodes of the right kind at all, up or not."""
    pool = [facts.nodes[name] for name in sorted(partition.nodes) if name in facts.nodes]
    if unknown := request.nodelist - set(facts.nodes):
        yield f"slurm.nodelist: there is no node {', '.join(sorted(unknown))}"
        return
    if outside := request.nodelist - partition.nodes:
        names = ", ".join(sorted(outside))
        yield f"slurm.nodelist: {names} is not in partition {partition.name}"
        return
    if forbidden := request.nodelist & request.excluded:
        names = ", ".join(sorted(forbidden))
        yield f"slurm.nodelist: {names} is in slurm.exclude, too; remove it from one of them"
        return
    steps = (
        ("slurm.nodes", "has", lambda node: True),
        ("slurm.exclude", "has beside those left out", lambda n: n.name not in request.excluded),
        ("slurm.reservation", "has in the reservation", lambda n: _reserved(request, facts, n)),
        ("slurm.constraint", "has with these features", lambda n: _has_features(request, n)),
        ("slurm.gpus_per_node", _gpu_words(request), lambda n: _has_gpus(request, n)),
        (
            "slurm.cpus_per_task",
            f"has with {request.cpus} CPUs",
            lambda n: n.cpus >= request.cpus,
        ),
        ("slurm.mem", _memory_words(request), lambda n: _has_memory(request, n, facts)),
    )
    for key, words, fits in steps:
        before, pool = pool, [node for node in pool if fits(node)]
        if len(pool) < request.nodes:
            yield (
                f"{key}: {request.nodes} nodes are asked for, and {len(pool)} is what partition "
                f"{partition.name} {words}{_largest(key, before)}"
            )
            return
        if unfit := request.nodelist - {node.name for node in pool}:
            yield f"slurm.nodelist: {', '.join(sorted(unfit))} does not fit: {key}"
            return


def _largest(key: str, pool: list[NodeFacts]) -> str:
    """The most that a node of the pool has of what was short."""
    if not pool:
        return ""
    if key == "slurm.mem":
        return f"; the largest has {max(node.memory_mb for node in pool)} MiB"
    if key == "slurm.cpus_per_task":
        return f"; the largest has {max(node.cpus for node in pool)}"
    if key == "slurm.gpus_per_node":
        shapes = sorted({_shape(node) for node in pool})
        return f"; its nodes have {', '.join(shapes)}"
    if key == "slurm.constraint":
        features = sorted(set().union(*(node.features for node in pool))) or ["none"]
        return f"; features there: {', '.join(features)}"
    return ""


def _shape(node: NodeFacts) -> str:
    gpus = [f"{count} {kind}".rstrip() for kind, count in sorted(node.gpus.items())]
    return " + ".join(gpus) + " GPUs" if gpus else "no GPUs"


def _gpu_words(request: Request) -> str:
    asked = [f"{count} {kind}".rstrip() for kind, count in request.gpus.items()]
    return f"has with {' + '.join(asked)} GPUs"


def _memory_words(request: Request) -> str:
    return f"has with {memory_mb(request)} MiB"


def _has_memory(request: Request, node: NodeFacts, facts: ClusterFacts) -> bool:
    counted = "MEMORY" in facts.settings.get("SelectTypeParameters", "").upper()
    return not counted or node.memory_mb >= memory_mb(request)


def _has_gpus(request: Request, node: NodeFacts) -> bool:
    typed = {kind: count for kind, count in request.gpus.items() if kind}
    enough = all(node.gpus.get(kind, 0) >= count for kind, count in typed.items())
    return enough and sum(node.gpus.values()) >= request.gpu_count


def _has_features(request: Request, node: NodeFacts) -> bool:
    return not request.features or any(one <= node.features for one in request.features)


def _reserved(request: Request, facts: ClusterFacts, node: NodeFacts) -> bool:
    known = [
        found
        for name in request.reservations
        if (found := (facts.reservations or {}).get(name)) is not None
    ]
    if not known or any(one.is_flexible or not one.nodes for one in known):
        return True
    return any(node.name in one.nodes for one in known)


def reservation_objections(request: Request, facts: ClusterFacts) -> Iterator[str]:
    """Whether there is a reservation of that name for this user; of several one will do."""
    if not request.reservations or facts.reservations is None:
        return
    problems = [_reservation_problem(name, facts) for name in request.reservations]
    if all(problems):
        yield from problems


def _reservation_problem(name: str, facts: ClusterFacts) -> str:
    found = (facts.reservations or {}).get(name)
    if found is None:
        known = ", ".join(sorted(facts.reservations or ())) or "none"
        return f"slurm.reservation: there is no reservation {name}; known: {known}"
    denies = any(user.startswith("-") for user in found.users)
    if found.users and not found.accounts and not denies and facts.user not in found.users:
        return f"slurm.reservation: {name} is for {', '.join(sorted(found.users))}"
    return ""


def usable(request: Request, facts: ClusterFacts, partition: str) -> list[NodeFacts]:
    """Nodes that the request could get: of the right kind, and up."""
    names = request.nodelist or facts.partitions[partition].nodes
    nodes = [facts.nodes[name] for name in names - request.excluded if name in facts.nodes]
    return [
        node
        for node in nodes
        if node.is_up
        and _reserved(request, facts, node)
        and _has_features(request, node)
        and _has_gpus(request, node)
        and node.cpus >= request.cpus
        and _has_memory(request, node, facts)
    ]


def free(request: Request, facts: ClusterFacts, partition: str) -> list[NodeFacts]:
    """Of those, the nodes that have room for it now."""
    return [node for node in usable(request, facts, partition) if _has_room(request, node, facts)]


def _has_room(request: Request, node: NodeFacts, facts: ClusterFacts) -> bool:
    if "RESERVED" in node.flags and not request.reservations:
        return False
    if node.is_idle:
        return True
    return (
        node.state == "MIXED"
        and not request.exclusive
        and node.free_cpus >= request.cpus
        and node.free_memory_mb >= memory_mb(request)
        and node.free_gpus >= request.gpu_count
    )
