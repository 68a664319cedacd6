"""Partitions and GPUs: what is up, idle, taken, drained, down, and free. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping

from launcher.assess.finding import Finding, fail, ok, unknown, warn
from launcher.verdict.facts import ClusterFacts, NodeFacts, PartitionFacts
from train.config.types import format_duration

_MOST_NAMES = 8
_OUT = ("drained", "down")


def judge_gpus(facts: ClusterFacts) -> Finding:
    """GPUs of the cluster by type, all and free."""
    id, declared = "slurm.gpus", facts.settings.get("GresTypes")
    if declared is None and not any(node.gpus for node in facts.nodes.values()):
        return unknown(id, "GresTypes is not in `scontrol show config`", "see `sinfo -o '%P %G'`")
    if any(node.gpus for node in facts.nodes.values()):
        return ok(id, _gpus(facts.nodes.values()))
    return warn(
        id,
        f"no node has a GPU that Slurm hands out (GresTypes={declared or 'none'})",
        "train on CPUs (slurm.gpus_per_node: 0), or ask the site for gres.conf",
    )


def judge_partitions(
    facts: ClusterFacts, *, needed: Collection[str] = (), reasons: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """One finding for each partition; one that is ``needed`` and takes no job fails.

    Without ``needed`` that is the default partition; ``reasons`` tell why nodes are out, by name.
    """
    needed = needed or {name for name in [facts.default_partition] if name}
    for name in sorted(set(facts.partitions) | set(needed)):
        found = facts.partitions.get(name)
        if found is None:
            known = ", ".join(sorted(facts.partitions))
            said = f"there is no partition {name}"
            yield fail(f"slurm.partition.{name}", said, f"set slurm.partition to one of {known}")
        else:
            yield judge_partition(found, facts, needed=name in needed, reasons=reasons or {})


def judge_partition(
    partition: PartitionFacts, facts: ClusterFacts, *, needed: bool, reasons: Mapping[str, str]
) -> Finding:
    """The true state of one partition, as counts of its nodes."""
    id = f"slurm.partition.{partition.name}"
    nodes = [facts.nodes[name] for name in sorted(partition.nodes) if name in facts.nodes]
    if len(nodes) < len(partition.nodes) or partition.state == "UNKNOWN":
        said = f"state {partition.state}, {len(nodes)} of {len(partition.nodes)} nodes are known"
        return unknown(id, said, f"`scontrol show partition {partition.name}`")
    kinds = Counter(kind_of(node) for node in nodes)
    evidence = "; ".join([*_evidence(partition, nodes, kinds), *_out(nodes, reasons)])
    serious = fail if needed else warn
    if partition.state != "UP":
        closed = "no job of it starts; take another partition, or ask the site when it is back"
        return serious(id, evidence, closed)
    if not any(node.is_up for node in nodes):
        return serious(id, evidence, "no node of it is up; take another, or ask the site")
    if out := sum(kinds[kind] for kind in _OUT):
        remedy = f"plan with {len(nodes) - out} of {len(nodes)} nodes, or ask the site when"
        return warn(id, evidence, f"{remedy} the others are back (`sinfo -R`)")
    return ok(id, evidence)


def kind_of(node: NodeFacts) -> str:
    """``idle``, ``mixed``, ``alloc``, ``drained`` (also while jobs on it end) or ``down``."""
    if node.state in ("DOWN", "UNKNOWN", "INVAL", "FAIL") or "NOT_RESPONDING" in node.flags:
        return "down"
    if not node.is_up:
        return "drained"
    return {"IDLE": "idle", "MIXED": "mixed", "ALLOCATED": "alloc"}.get(node.state, "alloc")


def _evidence(
    partition: PartitionFacts, nodes: list[NodeFacts], kinds: Mapping[str, int]
) -> Iterator[str]:
    order = ("idle", "mixed", "alloc", *_OUT)
    counts = ", ".join(f"{kinds[kind]} {kind}" for kind in order if kinds[kind])
    limit = partition.max_time_s
    yield f"{partition.state.lower()}{', default' if partition.is_default else ''}"
    yield f"{len(nodes)} nodes: {counts or 'none'}"
    yield f"time limit {'none' if limit is None else format_duration(limit)}"
    yield _gpus(nodes)


def _out(nodes: list[NodeFacts], reasons: Mapping[str, str]) -> Iterator[str]:
    """Which nodes are out of service, and why."""
    for kind in _OUT:
        names = [node.name for node in nodes if kind_of(node) == kind]
        told = [f"{name} ({reasons[name]})" if name in reasons else name for name in names]
        if told:
            more = f" and {len(told) - _MOST_NAMES} more" if len(told) > _MOST_NAMES else ""
            yield f"{kind}: {', '.join(told[:_MOST_NAMES])}{more}"


def _gpus(nodes: Iterable[NodeFacts]) -> str:
    """``24 of 32 h100 free``; of a node with several types Slurm tells only the sum in use."""
    total: Counter[str] = Counter()
    free: Counter[str] = Counter()
    for node in nodes:
        kind = " + ".join(sorted(node.gpus)) or ""
        total[kind] += sum(node.gpus.values())
        free[kind] += max(0, node.free_gpus) if node.is_up else 0
    present = [(kind, count) for kind, count in sorted(total.items()) if count]
    words = [f"{free[kind]} of {count} {kind}".rstrip() for kind, count in present]
    return f"GPUs free: {', '.join(words)}" if words else "no GPUs"
