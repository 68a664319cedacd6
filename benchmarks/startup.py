"""From the start of the rank processes to the first optimizer step, part by part.

``python -m benchmarks.startup [--rounds 3]``

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
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.phases import PARTS, rank_pid, start_of, steps
from benchmarks.report import at_most, head, median_ratio, say, spread, table
from benchmarks.small import small_config
from submitrain.launcher import Run, launch
from tests.cluster.ports import free_ports

WORLD_SIZE = 2
WAIT_S = 300.0
AIM_S = 8.0


def main() -> None:
    """Measure in turns, and print medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.startup")
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    head(f"process start to first optimizer step, {rounds} rounds")
    cold, warm, trainer = [], [], []
    for _ in range(rounds):
        with tempfile.TemporaryDirectory() as folder:
            cold.append(ours(Path(folder)))
            warm.append(ours(Path(folder)))
            trainer.append(theirs(Path(folder)))
    columns = {"cold cache": cold, "warm cache": warm}
    table("seconds, medians", list(columns), {part: _part(part, columns) for part in PARTS})
    say(
        "launch() until the supervisor's first attempt",
        statistics.median(one.before_s for one in warm),
        unit=" s",
    )
    for name, starts in {**columns, "Trainer": trainer}.items():
        totals = [one.total_s for one in starts]
        aim = None if name == "Trainer" else at_most(AIM_S)
        value = statistics.median(totals)
        say(f"start to first step, {name}", value, aim, unit=" s", note=spread(totals))
        cpu = [one.cpu_s for one in starts]
        say("  CPU time of the busiest rank", statistics.median(cpu), unit=" s", note=spread(cpu))
    for what in ("total_s", "cpu_s"):
        pairs = [[getattr(one, what) for one in column] for column in (warm, trainer)]
        ratio, all_of_them = median_ratio(*pairs)
        name = f"ours, warm cache / Trainer, {what.replace('_s', '')}"
        say(name, ratio, at_most(1.0), unit=" x", note=all_of_them)


@dataclass(frozen=True)
class Measured:
    """One start; ``parts`` and ``before_s`` are known of ours only."""

    total_s: float
    cpu_s: float
    """Of the rank that used most: what a quiet machine would need at the least."""
    parts: dict[str, float] = field(default_factory=dict)
    before_s: float = 0.0
    """From the call of ``launch`` to the supervisor's first attempt."""


def ours(folder: Path) -> Measured:
    """One start of ours."""
    called = time.time()
    run = launch(small_config(folder, checkpoint={"enabled": False}), cluster="local")
    try:
        wait_for_step(run)
        cpu_s = max(cpu_seconds(rank_pid(run.folder, rank)) for rank in range(WORLD_SIZE))
        start = start_of(run.folder, 1)
    finally:
        run.cancel()
        run.wait(WAIT_S)
    return Measured(start.total_s, cpu_s, start.seconds, start.began - called)


def wait_for_step(run: Run) -> None:
    """Wait until rank 0 recorded a step.

    Raises:
        RuntimeError: the run ended without one, or it took too long.
    """
    deadline = time.monotonic() + WAIT_S
    while not steps(run.folder):
        if time.monotonic() > deadline or run.run_dir.summary.exists():
            raise RuntimeError(f"no step: {run.status()}\n{run.logs()}")
        time.sleep(0.02)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far (proc(5): utime and stime are fields 14 and 15)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def theirs(folder: Path) -> Measured:
    """One start of Trainer, until both processes had done their first step."""
    (cache,) = (folder / "cache").glob("tokens-*")
    (tokenizer,) = (folder / "cache").glob("tokenizer-*")
    (port,) = free_ports(1)
    command = [sys.executable, "-m", "benchmarks.startup_trainer", str(cache), str(tokenizer)]
    began = time.time()
    processes = [
        subprocess.Popen(
            command,
            env={**os.environ, **_torchrun_variables(rank, port)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=folder,
        )
        for rank in range(WORLD_SIZE)
    ]
    outputs = [process.communicate(timeout=WAIT_S)[0] for process in processes]
    done = [line.split() for text in outputs for line in text.splitlines() if "DONE" in line]
    if len(done) != WORLD_SIZE:
        raise RuntimeError("\n".join(outputs))
    ended, cpu = ([float(words[index]) for words in done] for index in (1, 2))
    return Measured(max(ended) - began, max(cpu))


def _torchrun_variables(rank: int, port: int) -> dict[str, str]:
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(WORLD_SIZE),
        "LOCAL_WORLD_SIZE": str(WORLD_SIZE),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(Path(__file__).resolve().parents[1]),
    }


def _part(part: str, columns: Mapping[str, Sequence[Measured]]) -> list[float]:
    return [
        statistics.median(one.parts.get(part, 0.0) for one in column) for column in columns.values()
    ]


if __name__ == "__main__":
    main()
