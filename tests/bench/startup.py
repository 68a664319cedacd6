"""From the start of the rank processes to the first optimizer step, part by part.

``python -m tests.bench.startup [--rounds 3]``

A small Llama on two ranks, started by ``launch``: with empty caches (a tokenizer is trained and
the data tokenized) and with warm ones. Beside it Hugging Face's Trainer, the same model on two
processes, which gets our tokenized data for nothing: compare it with the warm start.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from launcher import Run, launch
from tests.bench.phases import PARTS, Start, start_of, steps
from tests.bench.report import at_most, head, median_ratio, say, spread, table
from tests.bench.small import small_config
from tests.slurm.ports import free_ports

WORLD_SIZE = 2
WAIT_S = 300.0
AIM_S = 8.0


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.startup")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    head(f"process start to first optimizer step, {rounds} rounds")
    cold, warm, submitted, trainer = [], [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(ours(Path(folder))[0])
            start, before = ours(Path(folder))
            warm.append(start)
            submitted.append(before)
            trainer.append(theirs(Path(folder)))
    columns = {"cold cache": cold, "warm cache": warm}
    table(
        "seconds, medians",
        list(columns),
        {part: [_median(starts, part) for starts in columns.values()] for part in PARTS},
    )
    say("launch() until the supervisor's first attempt", statistics.median(submitted), unit=" s")
    for name, starts in columns.items():
        totals = [start.total_s for start in starts]
        value = statistics.median(totals)
        say(f"ranks' start to first step, {name}", value, at_most(AIM_S), note=spread(totals))
    say("Trainer's start to first step", statistics.median(trainer), note=spread(trainer))
    ratio, all_of_them = median_ratio([start.total_s for start in warm], trainer)
    say("ours, warm cache / Trainer", ratio, at_most(1.0), unit=" x", note=all_of_them)


def ours(folder: Path) -> tuple[Start, float]:
    """One start of ours, and the seconds from ``launch`` to the supervisor's first attempt."""
    config = small_config(folder, step_scheduler={"max_steps": 1}, checkpoint={"enabled": False})
    called = time.time()
    run = launch(config, cluster="local")
    wait_for_step(run, attempt=1)
    start = start_of(run.folder, 1)
    run.wait(WAIT_S)
    return start, start.began - called


def wait_for_step(run: Run, *, attempt: int, timeout_s: float = WAIT_S) -> None:
    """Wait until rank 0 recorded a step in ``attempt``.

    Raises:
        RuntimeError: the run ended without one, or it took too long.
    """
    deadline = time.monotonic() + timeout_s
    while not steps(run.folder, attempt):
        if time.monotonic() > deadline or run.run_dir.summary.exists():
            raise RuntimeError(f"no step in attempt {attempt}\n{run.status()}\n{run.logs()}")
        time.sleep(0.02)


def theirs(folder: Path) -> float:
    """Seconds until both ranks of a Trainer had done their first step."""
    (cache,) = (folder / "cache").glob("tokens-*")
    (tokenizer,) = (folder / "cache").glob("tokenizer-*")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "tests.bench.startup_trainer", cache, tokenizer]
    began = time.time()
    processes = [
        subprocess.Popen(
            [*map(str, command)],
            env={**os.environ, **_torchrun_variables(rank, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        for rank in range(WORLD_SIZE)
    ]
    outputs = [process.communicate(timeout=WAIT_S)[0] for process in processes]
    done = [line.split()[1] for text in outputs for line in text.splitlines() if "DONE" in line]
    if len(done) != WORLD_SIZE:
        raise RuntimeError("\n".join(outputs))
    return max(map(float, done)) - began


def _torchrun_variables(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),
    }


def _median(starts: list[Start], part: str) -> float:
    return statistics.median(start.seconds.get(part, 0.0) for start in starts)


if __name__ == "__main__":
    main()
