"""A job's request, and why no partition, node or reservation of the cluster can ever run it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from submitrain.config.types import format_duration, parse_duration_s
from submitrain.slurm.cluster import ClusterFacts, NodeFacts, PartitionFacts
from submitrain.slurm.parse import expand_nodes, megabytes, parse_gres


@dataclass(frozen=True)
class JobRequest:
    """What a batch job asks for, per node where not said otherwise; memory in MiB."""

    nodes: int
    max_nodes: int
    cpus: int
    memory_mb: int
    """0 for all of it, or where only the site's defaults say how much."""
    gpus: Mapping[str, int]
    """By type; the type is empty where any will do."""
    time_s: int
    partitions: tuple[str, ...]
    account: str
    qos: str
    features: tuple[frozenset[str], ...]
    """All of the first set, or all of the second ...; empty when it is more complicated."""
    nodelist: frozenset[str]
    excluded: frozenset[str]
    exclusive: bool
    reservations: tuple[str, ...]

    @property
    def gpu_count(self) -> int:
        """GPUs of each node, of all types."""
        return sum(self.gpus.values())


def request_of(parameters: Mapping[str, Any]) -> JobRequest:
    """The request in submitit's parameters (``launcher.plan.sbatch.sbatch_parameters``)."""

    def text(name: str) -> str:
        return str(parameters.get(name) or "")

    extra = parameters.get("additional_parameters") or {}
    low, _, high = str(parameters.get("nodes", 1)).partition("-")
    cpus = int(parameters.get("ntasks_per_node") or 1) * int(parameters.get("cpus_per_task") or 1)
    cpus = 1 if extra.get("overcommit") else cpus
    memory_mb = megabytes(text("mem").upper().removesuffix("B"))
    if memory_mb is None:
        memory_mb = cpus * (megabytes(text("mem_per_cpu").upper().removesuffix("B")) or 0)
    time_s = int(parameters["time"]) * 60
    with suppress(KeyError, ValueError):
        # The least time that will do is what Slurm checks.
        time_s = min(time_s, parse_duration_s(extra["time-min"]))
    per_node = text("gpus_per_node")
    return JobRequest(
        nodes=int(low),
        max_nodes=int(high or low),
        cpus=cpus,
        memory_mb=memory_mb,
        gpus=parse_gres(f"gpu:{per_node}" if per_node else text("gres")),
        time_s=time_s,
        partitions=tuple(filter(None, text("partition").split(","))),
        account=text("account").lower(),
        qos=text("qos").lower(),
        features=_features(text("constraint")),
        nodelist=frozenset(expand_nodes(text("nodelist"))),
        excluded=frozenset(expand_nodes(text("exclude"))),
        exclusive=bool(parameters.get("exclusive")),
        reservations=tuple(filter(None, str(extra.get("reservation") or "").split(","))),
    )


def _features(constraint: str) -> tuple[frozenset[str], ...]:
    """``a&b|c`` as sets of which one has to hold; counts and brackets are not judged."""
    if not constraint or re.search(r"[\[\]()*]", constraint):
        return ()
    return tuple(
        frozenset(name for name in re.split(r"[&,]", one) if name) for one in constraint.split("|")
    )


BY_THE_SITE = "the site's administrators set it"


def above(key: str, asked: object, limit: str, value: object) -> str:
    return f"{key}: {asked} is above {limit} ({value}; {BY_THE_SITE}); ask for {value} or less"


def partition_objections(
    request: JobRequest, partition: PartitionFacts, waived: frozenset[str]
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


@dataclass(frozen=True)
class _Requirement:
    """Something that a node has to have for a request."""

    key: str
    words: str
    """What nodes that have it are said to be, after "is what partition X"."""
    fits: Callable[[NodeFacts], bool]
    best: Callable[[list[NodeFacts]], str] = lambda pool: ""
    """What the nodes of a pool have instead."""


def _requirements(request: JobRequest, facts: ClusterFacts) -> list[_Requirement]:
    """All that a node has to have, in the order in which a pool of nodes is narrowed."""
    counted = "MEMORY" in facts.settings.get("SelectTypeParameters", "").upper()
    gpus = " + ".join(f"{count} {kind}".rstrip() for kind, count in request.gpus.items())

    def has_gpus(node: NodeFacts) -> bool:
        typed = {kind: count for kind, count in request.gpus.items() if kind}
        enough = all(node.gpus.get(kind, 0) >= count for kind, count in typed.items())
        return enough and sum(node.gpus.values()) >= request.gpu_count

    def shapes(pool: list[NodeFacts]) -> str:
        return f"; its nodes have {', '.join(sorted({_shape(node) for node in pool}))}"

    def features(pool: list[NodeFacts]) -> str:
        names = sorted(set().union(*(node.features for node in pool))) or ["none"]
        return f"; features there: {', '.join(names)}"

    return [
        _Requirement(
            "slurm.exclude",
            "has beside those left out",
            lambda node: node.name not in request.excluded,
        ),
        _Requirement(
            "slurm.reservation",
            "has in the reservation",
            lambda node: _reserved(request, facts, node),
        ),
        _Requirement(
            "slurm.constraint",
            "has with these features",
            lambda node: (
                not request.features or any(one <= node.features for one in request.features)
            ),
            features,
        ),
        _Requirement("slurm.gpus_per_node", f"has with {gpus} GPUs", has_gpus, shapes),
        _Requirement(
            "slurm.cpus_per_task",
            f"has with {request.cpus} CPUs",
            lambda node: node.cpus >= request.cpus,
            lambda pool: f"; the largest has {max(node.cpus for node in pool)}",
        ),
        _Requirement(
            "slurm.mem",
            f"has with {request.memory_mb} MiB",
            lambda node: not counted or node.memory_mb >= request.memory_mb,
            lambda pool: f"; the largest has {max(node.memory_mb for node in pool)} MiB",
        ),
    ]


def _shape(node: NodeFacts) -> str:
    gpus = [f"{count} {kind}".rstrip() for kind, count in sorted(node.gpus.items())]
    return " + ".join(gpus) + " GPUs" if gpus else "no GPUs"


def node_objections(
    request: JobRequest, partition: PartitionFacts, facts: ClusterFacts
) -> Iterator[str]:
    """Whether the partition has enough nodes of the right kind at all, up or not."""
    for names, problem in (
        (request.nodelist - set(facts.nodes), ""),
        (request.nodelist - partition.nodes, f"is not in partition {partition.name}"),
        (request.nodelist & request.excluded, "is in slurm.exclude, too; remove it from one"),
    ):
        if names:
            listed = ", ".join(sorted(names))
            yield (
                f"slurm.nodelist: {listed} {problem}"
                if problem
                else (f"slurm.nodelist: there is no node {listed}")
            )
            return
    pool = [facts.nodes[name] for name in sorted(partition.nodes) if name in facts.nodes]
    anything = _Requirement("slurm.nodes", "has", lambda node: True)
    for one in (anything, *_requirements(request, facts)):
        before, pool = pool, [node for node in pool if one.fits(node)]
        if len(pool) < request.nodes:
            yield (
                f"{one.key}: {request.nodes} nodes are asked for, and {len(pool)} is what "
                f"partition {partition.name} {one.words}{one.best(before) if before else ''}"
            )
            return
        if unfit := request.nodelist - {node.name for node in pool}:
            yield f"slurm.nodelist: {', '.join(sorted(unfit))} does not fit: {one.key}"
            return


def _reserved(request: JobRequest, facts: ClusterFacts, node: NodeFacts) -> bool:
    known = [
        found
        for name in request.reservations
        if (found := (facts.reservations or {}).get(name)) is not None
    ]
    if not known or any(one.is_flexible or not one.nodes for one in known):
        return True
    return any(node.name in one.nodes for one in known)


def usable(request: JobRequest, facts: ClusterFacts, partition: str) -> list[NodeFacts]:
    """Nodes that the request could get: of the right kind, and up."""
    names = request.nodelist or facts.partitions[partition].nodes
    nodes = [facts.nodes[name] for name in names if name in facts.nodes]
    needed = _requirements(request, facts)
    return [node for node in nodes if node.is_up and all(one.fits(node) for one in needed)]


def free(request: JobRequest, facts: ClusterFacts, partition: str) -> list[NodeFacts]:
    """Of those, the nodes that have room for it now."""

    def has_room(node: NodeFacts) -> bool:
        if "RESERVED" in node.flags and not request.reservations:
            return False
        return node.is_idle or (
            node.state == "MIXED"
            and not request.exclusive
            and node.free_cpus >= request.cpus
            and node.free_memory_mb >= request.memory_mb
            and node.free_gpus >= request.gpu_count
        )

    return [node for node in usable(request, facts, partition) if has_room(node)]


def reservation_objections(request: JobRequest, facts: ClusterFacts) -> Iterator[str]:
    """Whether there is a reservation of that name for this user; of several one will do."""
    known, problems = facts.reservations, []
    for name in request.reservations if known is not None else ():
        found = (known or {}).get(name)
        if found is None:
            names = ", ".join(sorted(known or ())) or "none"
            problems.append(f"slurm.reservation: there is no reservation {name}; known: {names}")
            continue
        denies = any(user.startswith("-") for user in found.users)
        if found.users and not found.accounts and not denies and facts.user not in found.users:
            users = ", ".join(sorted(found.users))
            problems.append(f"slurm.reservation: {name} is for {users}")
    if len(problems) == len(request.reservations):
        yield from problems
