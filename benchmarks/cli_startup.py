"""How long ``python -m launcher --help`` takes: the median of some runs, against its budget.

    python benchmarks/cli_startup.py [RUNS]

Exit code 1 over the budget. Run it on a quiet machine: it measures wall-clock time.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

BUDGET_S = 0.3
REPOSITORY = Path(__file__).resolve().parents[1]


def measure_s() -> float:
    """Seconds of one ``--help`` in a fresh process."""
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "launcher", "--help"],
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        check=True,
    )
    return time.perf_counter() - started


def main() -> int:
    """Measure, print, compare."""
    runs = int(sys.argv[1]) if len(sys.argv) > 1 else 11
    seconds = [measure_s() for _ in range(runs)]
    median = statistics.median(seconds)
    print(f"--help: median {median:.3f} s, slowest {max(seconds):.3f} s of {runs} runs")
    print(f"budget: {BUDGET_S} s")
    return 0 if median < BUDGET_S else 1


if __name__ == "__main__":
    sys.exit(main())
