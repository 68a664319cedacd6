"""The rules, by the part that writes the line: scheduler, GPU, NCCL, memory, files, network ..."""

from __future__ import annotations

from monitor.diagnose.patterns.access import ACCESS_RULES
from monitor.diagnose.patterns.config import CONFIG_RULES
from monitor.diagnose.patterns.container import CONTAINER_RULES
from monitor.diagnose.patterns.data import DATA_RULES
from monitor.diagnose.patterns.files import FILES_RULES
from monitor.diagnose.patterns.gpu import GPU_RULES
from monitor.diagnose.patterns.imports import IMPORTS_RULES
from monitor.diagnose.patterns.memory import MEMORY_RULES
from monitor.diagnose.patterns.nccl import NCCL_RULES
from monitor.diagnose.patterns.network import NETWORK_RULES
from monitor.diagnose.patterns.numbers import NUMBERS_RULES
from monitor.diagnose.patterns.process import PROCESS_RULES
from monitor.diagnose.patterns.scheduler import SCHEDULER_RULES
from monitor.diagnose.rule import Rule

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
