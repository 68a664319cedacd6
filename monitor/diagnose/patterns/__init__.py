"""The rules, by the part that writes the line: scheduler, GPU, NCCL, memory, files, network ..."""

from __future__ import annotations

from monitor.diagnose.patterns import (
    access,
    config,
    container,
    data,
    files,
    gpu,
    imports,
    memory,
    nccl,
    network,
    numbers,
    process,
    scheduler,
)
from monitor.diagnose.rule import Rule

RULES: tuple[Rule, ...] = (
    *container.RULES,
    *scheduler.RULES,
    *memory.RULES,
    *gpu.RULES,
    *nccl.RULES,
    *numbers.RULES,
    *files.RULES,
    *data.RULES,
    *imports.RULES,
    *access.RULES,
    *network.RULES,
    *config.RULES,
    *process.RULES,
)
"""In the order of precedence for one line: of several rules that match it, the most trusted one
holds, and of equals the first."""
