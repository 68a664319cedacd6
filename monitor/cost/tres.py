"""What an allocation holds, from Slurm's TRES text or a request for GPUs. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Unit(StrEnum):
    """What is counted."""

    GPU = "GPU"
    CORE = "core"
    RANK = "rank"
    """Where neither GPUs nor the scheduler's count of CPUs are known."""


@dataclass(frozen=True)
class Holding:
    """So many of one unit; ``gpu`` is the GPU's type in lower case, where it is known."""

    unit: Unit
    count: int
    gpu: str = ""


def holdings_of(tres: str) -> tuple[Holding, ...]:
    """GPUs of an allocation by type, else its CPUs, from ``AllocTRES`` (sacct(1)).

    ``gres/gpu=N`` counts all GPUs and holds; only without it the typed ones are summed up.
    """
    counts = _counts(tres)
    typed = {
        name.partition(":")[2].lower(): count
        for name, count in counts.items()
        if name.startswith("gres/gpu:") and count
    }
    total = counts.get("gres/gpu", sum(typed.values()))
    if typed and sum(typed.values()) == total:
        return tuple(Holding(Unit.GPU, count, name) for name, count in sorted(typed.items()))
    if total:
        return (Holding(Unit.GPU, total, next(iter(typed)) if len(typed) == 1 else ""),)
    cores = counts.get("cpu", 0)
    return (Holding(Unit.CORE, cores),) if cores else ()


def requested_type(sbatch: Mapping[str, Any]) -> str:
    """The GPU type that a submission asked for: ``h100`` of ``h100:8`` or ``gpu:h100:8``."""
    for key in ("gpus_per_node", "gres"):
        for part in str(sbatch.get(key) or "").split(","):
            words = [word for word in part.split(":") if word not in ("gpu", "")]
            if words and not words[0].isdigit():
                return words[0].lower()
    return ""


def _counts(tres: str) -> dict[str, int]:
    counts = {}
    for part in tres.split(","):
        name, _, number = part.partition("=")
        match = re.fullmatch(r"(\d+)", number.strip())
        if match:
            counts[name.strip()] = int(match.group())
    return counts
