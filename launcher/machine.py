"""What this machine has: CPU cores and memory, as far as this process may use them."""

from __future__ import annotations

import os
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """Cores and bytes of memory."""

    cpus: int
    memory_bytes: int


def this_machine() -> Machine:
    """Cores that this process may run on, and the machine's physical memory."""
    pages = os.sysconf("SC_PHYS_PAGES")
    return Machine(len(os.sched_getaffinity(0)), pages * os.sysconf("SC_PAGE_SIZE"))
