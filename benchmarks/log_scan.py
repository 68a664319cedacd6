"""How quickly, and in how much memory, logs are searched for failures.

``python -m benchmarks.log_scan [MB]``

Four kinds of logs: a trainer's healthy lines with a failure at the end, the same with many warnings
between, progress bars, and words that never come twice. Each is scanned in a process of its own, by
us and in the naive way: read all of it and search every line with one alternation of expressions.
"""

from __future__ import annotations

import argparse
import random
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.report import at_least, at_most, head, say
from submitrain.monitor.diagnose import diagnose_files

MB = 1_000_000
FAILURE = b"[rank3]: torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.\n"
KINDS = ("steps", "warnings", "bars", "words")
NAIVE = re.compile(
    r"CUDA out of memory|oom.kill|Out of memory|Watchdog caught|NCCL WARN|Node failure|DUE TO|"
    r"PREEMPTION|No space left|Segmentation fault|Xid|Stale file handle|401 Client|loss.*nan|"
    r"ModuleNotFoundError|unrecognized arguments|Max retries|DataLoader worker"
)
"""What people write first: eighteen patterns, one expression."""
AIM_MB_PER_S = 60.0
AIM_MEMORY_MB = 80.0


def main() -> None:
    """Write the logs, scan each in child processes, print speed and peak memory."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.log_scan")
    parser.add_argument("megabytes", nargs="?", type=int, default=200, metavar="MB")
    parser.add_argument("--child", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        _child(asked.child[0], Path(asked.child[1]))
        return
    head(f"scan of logs of {asked.megabytes} MB; seconds are of the processor")
    with tempfile.TemporaryDirectory() as folder:
        for kind in KINDS:
            path = Path(folder) / f"{kind}.log"
            _write(path, kind, asked.megabytes * MB)
            _compare(path, kind)
            path.unlink()


def _compare(path: Path, kind: str) -> None:
    size = path.stat().st_size / MB
    seconds, memory = _measure("ours", path)
    say(f"{kind}: ours", size / seconds, at_least(AIM_MB_PER_S), unit=" MB/s")
    say(f"{kind}: ours, peak memory", memory, at_most(AIM_MEMORY_MB), unit=" MB")
    seconds, memory = _measure("naive", path)
    say(f"{kind}: naive", size / seconds, unit=" MB/s")
    say(f"{kind}: naive, peak memory", memory, unit=" MB")


def _measure(way: str, path: Path) -> tuple[float, float]:
    command = [sys.executable, "-m", "benchmarks.log_scan", "--child", way, str(path)]
    answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    seconds, memory = answer.split()
    return float(seconds), float(memory)


def _child(way: str, path: Path) -> None:
    ways: dict[str, Callable[[Path], str]] = {"ours": _ours, "naive": _naive}
    began = time.process_time()
    found = ways[way](path)
    seconds = time.process_time() - began
    if found != "cuda_oom":
        sys.exit(f"{path}: expected cuda_oom, got {found}")
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / MB)


def _ours(path: Path) -> str:
    return str(diagnose_files([path]).kind)


def _naive(path: Path) -> str:
    lines = path.read_text(errors="replace").splitlines()
    found = [line for line in lines if NAIVE.search(line)]
    return "cuda_oom" if any("CUDA out of memory" in line for line in found) else "benign"


def _write(path: Path, kind: str, size: int) -> None:
    chance = random.Random(7)
    piece = b"".join(_line(kind, number, chance) for number in range(20_000))
    with path.open("wb") as file:
        while file.tell() < size:
            # Words that never come twice have to be made anew each time.
            file.write(piece)
            if kind == "words":
                piece = b"".join(_line(kind, number, chance) for number in range(20_000))
        file.write(b"\n" + FAILURE)


def _line(kind: str, number: int, chance: random.Random) -> bytes:
    if kind == "words":
        letters = "".join(chance.choices("abcdefghijklmnopqrstuvwxyz ", k=120))
        return f"sample {number}: {letters}\n".encode()
    if kind == "bars":
        done = number % 100
        bar = "#" * (done // 4)
        return (
            f" {done}%|{bar:<25}| {number}/20000 [{number // 60}:00<9:00, 1.{done}it/s]\r".encode()
        )
    step = (
        f" iteration {number:8d}/  500000 | consumed samples: {number * 512:12d} | elapsed time "
        f"per iteration (ms): {chance.random() * 900:.1f} | learning rate: 6.664E-06 | lm loss: "
        f"{chance.random():.6E} | loss scale: 1.0 | grad norm: {chance.random():.3f} | number of "
        f"skipped iterations:   0 | number of nan iterations:   0 |\n"
        f"[rank{number % 8}]: 2026-05-11 12:33:{number % 60:02d},123 INFO loop: step={number} "
        f"loss={chance.random():.4f} data_wait=0.002 shard=/lustre/c4/part-{number:05d}.parquet\n"
    )
    if kind == "warnings" and number % 5 == 0:
        step += (
            f"gpu-{number % 16}:{1000 + number}:{number} [3] NCCL INFO Channel 00/0 : 3 -> 4\n"
            f"/opt/env/torch/utils.py:{number}: UserWarning: error bars need {number} samples, "
            f"failed ones are left out\n[W socket.cpp:{number}] [c10d] The client socket has "
            "failed to connect to [node1]:29500 (errno: 99 - Cannot assign requested address).\n"
            f"GET /api/{number} status code {200 + number % 7}\n"
        )
    return step.encode()


if __name__ == "__main__":
    main()
