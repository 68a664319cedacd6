"""The rules, by the part that writes the line: scheduler, GPU, NCCL, memory, files, network ..."""

from __future__ import annotations

from submitrain.monitor.diagnose.model import Rule
from submitrain.monitor.diagnose.patterns_cluster import (
    CONTAINER_RULES,
    PROCESS_RULES,
    SCHEDULER_RULES,
)
from submitrain.monitor.diagnose.patterns_files import (
    ACCESS_RULES,
    DATA_RULES,
    FILES_RULES,
    IMPORTS_RULES,
)
from submitrain.monitor.diagnose.patterns_gpu import GPU_RULES, MEMORY_RULES, NCCL_RULES
from submitrain.monitor.diagnose.patterns_program import CONFIG_RULES, NETWORK_RULES, NUMBERS_RULES

RULES: tuple[Rule, ...] = (
    *CONTAINER_RULES,
    *SCHEDULER_RULES,
    *MEMORY_RULES,
    *GPU_RULES,
    *NCCL_RULES,
    *NUMBERS_RULES,
    *FILES_RULES,
    *DATA_RULES,
    *IMPORTS_RULES,
    *ACCESS_RULES,
    *NETWORK_RULES,
    *CONFIG_RULES,
    *PROCESS_RULES,
)
"""In the order of precedence for one line: of several rules that match it, the most trusted one
holds, and of equals the first."""
