"""What a batch job asks for, read from the parameters that submitit gets. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from launcher.verdict.parse import megabytes, parse_gres
from monitor.hostlist import expand_nodes
from train.config.types import parse_duration_s


@dataclass(frozen=True)
class Request:
    """What a batch job asks for, per node where not said otherwise; memory in MiB."""

    nodes: int
    max_nodes: int
    cpus: int
    memory_mb: int | None
    memory_per_cpu_mb: int | None
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


def request_of(parameters: Mapping[str, Any]) -> Request:
    """The request in submitit's parameters (``launcher.sbatch.sbatch_parameters``)."""
    low, _, high = str(parameters.get("nodes", 1)).partition("-")
    gres = str(parameters.get("gres") or "")
    per_node = parameters.get("gpus_per_node")
    asked = parse_gres(f"gpu:{per_node}" if per_node else gres)
    extra = parameters.get("additional_parameters") or {}
    cpus = int(parameters.get("ntasks_per_node") or 1) * int(parameters.get("cpus_per_task") or 1)
    return Request(
        nodes=int(low),
        max_nodes=int(high or low),
        cpus=1 if extra.get("overcommit") else cpus,
        memory_mb=megabytes(str(parameters.get("mem") or "").upper().removesuffix("B")),
        memory_per_cpu_mb=megabytes(
            str(parameters.get("mem_per_cpu") or "").upper().removesuffix("B")
        ),
        gpus=asked,
        # The least time that will do is what Slurm checks (--time-min).
        time_s=_least_time_s(int(parameters["time"]) * 60, extra.get("time-min")),
        partitions=tuple(
            name for name in str(parameters.get("partition") or "").split(",") if name
        ),
        account=str(parameters.get("account") or "").lower(),
        qos=str(parameters.get("qos") or "").lower(),
        features=_features(str(parameters.get("constraint") or "")),
        nodelist=frozenset(expand_nodes(str(parameters.get("nodelist") or ""))),
        excluded=frozenset(expand_nodes(str(parameters.get("exclude") or ""))),
        exclusive=bool(parameters.get("exclusive")),
        reservations=tuple(name for name in str(extra.get("reservation") or "").split(",") if name),
    )


def _least_time_s(time_s: int, least: object) -> int:
    try:
        return time_s if least is None else min(time_s, parse_duration_s(least))
    except ValueError:
        return time_s


def _features(constraint: str) -> tuple[frozenset[str], ...]:
    """``a&b|c`` as sets of which one has to hold; counts and brackets are not judged."""
    if not constraint or re.search(r"[\[\]()*]", constraint):
        return ()
    return tuple(
        frozenset(name for name in re.split(r"[&,]", one) if name) for one in constraint.split("|")
    )


def memory_mb(request: Request) -> int:
    """MiB asked for on every node; 0 for all, or where only the site's defaults say how much."""
    if request.memory_mb is not None:
        return request.memory_mb
    return (request.memory_per_cpu_mb or 0) * request.cpus
