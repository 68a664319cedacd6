"""Objections of partitions, nodes and reservations, and which nodes a request could get. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from launcher.verdict.facts import ClusterFacts, NodeFacts, PartitionFacts
from launcher.verdict.limits import BY_THE_SITE, above
from launcher.verdict.request import Request, memory_mb
from train.config.types import format_duration


def partition_objections(request: Request, partition: PartitionFacts) -> Iterator[str]:
    name = f"partition {partition.name}"
    if partition.state in ("DOWN", "INACTIVE", "DRAIN"):
        yield (
            f"slurm.partition: {name} is {partition.state.lower()}: no job of it starts; "
            "take another one, or ask when it is back"
        )
    if partition.max_time_s is not None and request.time_s > partition.max_time_s:
        yield above(
            "slurm.time",
            format_duration(request.time_s),
            f"MaxTime of {name}",
            format_duration(partition.max_time_s),
        )
    if partition.max_nodes is not None and request.nodes > partition.max_nodes:
        yield above("slurm.nodes", request.nodes, f"MaxNodes of {name}", partition.max_nodes)
    if request.max_nodes < partition.min_nodes:
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
        ("slurm.mem", _memory_words(request, facts), lambda n: _has_memory(request, n, facts)),
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
    return f"has with {request.gpus} {request.gpu_type}".rstrip() + " GPUs"


def _memory_words(request: Request, facts: ClusterFacts) -> str:
    return f"has with {memory_mb(request, facts)} MiB"


def _has_memory(request: Request, node: NodeFacts, facts: ClusterFacts) -> bool:
    return node.memory_mb >= memory_mb(request, facts)


def _has_gpus(request: Request, node: NodeFacts) -> bool:
    if request.gpu_type:
        return node.gpus.get(request.gpu_type, 0) >= request.gpus
    return sum(node.gpus.values()) >= request.gpus


def _has_features(request: Request, node: NodeFacts) -> bool:
    return not request.features or any(one <= node.features for one in request.features)


def _reserved(request: Request, facts: ClusterFacts, node: NodeFacts) -> bool:
    if not request.reservation or facts.reservations is None:
        return True
    found = facts.reservations.get(request.reservation)
    return found is None or not found.nodes or node.name in found.nodes


def reservation_objections(request: Request, facts: ClusterFacts) -> Iterator[str]:
    if not request.reservation or facts.reservations is None:
        return
    found = facts.reservations.get(request.reservation)
    if found is None:
        known = ", ".join(sorted(facts.reservations)) or "none"
        yield f"slurm.reservation: there is no reservation {request.reservation}; known: {known}"
    elif found.users and not found.accounts and facts.user not in found.users:
        yield f"slurm.reservation: {request.reservation} is for {', '.join(sorted(found.users))}"


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
    if "RESERVED" in node.flags and not request.reservation:
        return False
    if node.is_idle:
        return True
    return (
        node.state == "MIXED"
        and not request.exclusive
        and node.free_cpus >= request.cpus
        and node.free_memory_mb >= memory_mb(request, facts)
        and node.free_gpus >= request.gpus
    )
