"""How many two-rank runs abort after they have done their work.

``python -m tests.bench.exits [runs] [--control RUNS]``

torch 2.13 with gloo now and then aborts a process at its exit, after a good run ("terminate called
without an active exception"); under Slurm that is a failed job. Every run here is a whole training
of two steps with background checkpoints, on two processes of ``launcher.rank`` and on its way out.
The control leaves by the interpreter's own exit instead: it shows what would happen otherwise.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from tests.bench.report import at_most, head, say
from tests.ranks import REPOSITORY
from tests.tiny import tiny_config
from train.events import Kind, read_events
from train.rundir import RunDir

WORLD_SIZE = 2
FINISHED = "finished"


def main() -> None:
    """Run, count, print; the control's runs are spread between ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.exits")
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("--control", type=int, default=25, metavar="RUNS")
    asked = parser.parse_args()
    head(f"exits of {asked.runs} two-rank runs, and of {asked.control} control runs")
    ours: Counter[str] = Counter()
    control: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, fork_server() as server:
        for number in range(asked.runs):
            ours[exit_of(Path(folder), server)] += 1
            due = asked.control * (number + 1) // asked.runs
            while control.total() < due:
                control[exit_of(Path(folder), server, control=True)] += 1
    _tell("runs of ours that did not end with 0", ours, aim=True)
    _tell("control runs that did not end with 0", control, aim=False)
    runs = ours.total() + control.total()
    say("seconds per run", (time.monotonic() - began) / max(1, runs), unit=" s")


@contextmanager
def fork_server() -> Iterator[subprocess.Popen[str]]:
    """The process that forks the ranks (``exits_fork``)."""
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.bench.exits_fork"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(REPOSITORY)},
        text=True,
    )
    try:
        yield server
    finally:
        server.communicate()


def exit_of(folder: Path, server: subprocess.Popen[str], *, control: bool = False) -> str:
    """How one run ended: ``finished``, or what went wrong and whether its work was done by then."""
    run_dir = RunDir(Path(tempfile.mkdtemp(dir=folder, prefix="run-")))
    config = tiny_config(
        folder,
        step_scheduler={"grad_acc_steps": 1, "max_steps": 2, "ckpt_every_steps": 1},
        dataloader={"batch_size": 1, "num_workers": 0},
    )
    run_dir.config.write_text(yaml.safe_dump(config))
    attempt = run_dir.claim_attempt()
    orders = [_order(run_dir, attempt, rank, control) for rank in range(WORLD_SIZE)]
    assert server.stdin is not None and server.stdout is not None
    server.stdin.write(json.dumps(orders) + "\n")
    server.stdin.flush()
    codes: list[int] = json.loads(server.stdout.readline())
    done = all(_finished(run_dir, rank) for rank in range(WORLD_SIZE))
    if not any(codes):
        return FINISHED if done else "0 without a finish"
    names = [signal.Signals(-code).name if code < 0 else str(code) for code in codes if code]
    return f"{' and '.join(names)} {'after' if done else 'before'} the finish"


def _order(run_dir: RunDir, attempt: int, rank: int, control: bool) -> dict[str, Any]:
    environment = {
        "SUBMITRAIN_RUN_DIR": str(run_dir.root),
        "SUBMITRAIN_ATTEMPT": str(attempt),
        "SUBMITRAIN_JOB_ID": "bench",
        "SUBMITRAIN_RANK": str(rank),
        "SUBMITRAIN_LOCAL_RANK": str(rank),
        "SUBMITRAIN_WORLD_SIZE": str(WORLD_SIZE),
        "SUBMITRAIN_LOCAL_WORLD_SIZE": str(WORLD_SIZE),
    }
    log = str(run_dir.log(attempt, rank, "out"))
    return {"environment": environment, "log": log, "control": control}


def _finished(run_dir: RunDir, rank: int) -> bool:
    return any(read_events(run_dir.events(rank), kinds=frozenset({Kind.FINISH})))


def _tell(what: str, ends: Counter[str], *, aim: bool) -> None:
    runs = ends.total()
    note = ", ".join(f"{count} x {end}" for end, count in ends.most_common())
    say(f"{what}, of {runs}", runs - ends[FINISHED], at_most(0) if aim else None, note=note)


if __name__ == "__main__":
    main()
