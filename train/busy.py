"""How much this process has worked so far: what tells a slow rank from those that wait for it.

Every rank of a step ends at the same moment, so its wall time shows nobody. Imports nothing of
this project.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

_TASKS = Path("/proc/self/task")
_NS = 1e-9


def busy_s() -> float:
    """Seconds that this process's threads computed, or waited for a core to compute on.

    Waiting for a peer, a disk or a GPU does not count, a core shared with strangers does
    (proc(5), schedstat: time on the CPU, time on a run queue). Where the kernel keeps no
    schedstat it is the CPU time.
    """
    threads = [one for task in os.scandir(_TASKS) if (one := _of_thread(Path(task.path)))]
    return sum(threads) * _NS if threads else time.process_time()


def _of_thread(task: Path) -> int | None:
    """Nanoseconds of one thread; None if it has just ended, or the kernel does not count."""
    try:
        fields = (task / "schedstat").read_text().split()
        return int(fields[0]) + int(fields[1])
    except (OSError, ValueError, IndexError):
        return None
