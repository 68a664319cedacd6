"""How many two-rank runs abort after they have done their work.

``python -m tests.bench.exits [runs] [--control RUNS]``

torch 2.13 with gloo now and then aborts a process at its exit, after a good run ("terminate called
without an active exception"); under Slurm that is a failed job. Every run here is a whole training
of two steps with background checkpoints, on two processes of ``launcher.rank`` and on its way out.
The control leaves by the interpreter's own exit instead: it shows what would happen otherwise.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import yaml

from tests.bench.report import at_most, head, say
from tests.ranks import REPOSITORY
from tests.tiny import tiny_config
from train.events import Kind, read_events
from train.rundir import RunDir

WORLD_SIZE = 2
TIMEOUT_S = 240.0
OURS = ("-m", "launcher.rank")
CONTROL = (
    "-c",
    "import sys; from train.stop import StopFlag; from launcher.rankrun import run_rank; "
    "sys.exit(run_rank(StopFlag()))",
)


def main() -> None:
    """Run, count, print; the control's runs are spread between ours."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench.exits")
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("--control", type=int, default=10, metavar="RUNS")
    asked = parser.parse_args()
    head(f"exits of {asked.runs} two-rank runs, and of {asked.control} control runs")
    began = time.monotonic()
    ends: dict[str, Counter[str]] = {"ours": Counter(), "control": Counter()}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.runs):
            ends["ours"][exit_of(Path(folder), OURS)] += 1
            if number * asked.control // asked.runs < (number + 1) * asked.control // asked.runs:
                ends["control"][exit_of(Path(folder), CONTROL)] += 1
    say(
        f"runs of ours that did not end with 0, of {asked.runs}",
        asked.runs - ends["ours"]["finished"],
        at_most(0),
        note=_listed(ends["ours"]),
    )
    say(
        f"control runs that did not end with 0, of {asked.control}",
        asked.control - ends["control"]["finished"],
        note=_listed(ends["control"]),
    )
    runs = asked.runs + asked.control
    say("seconds per run", (time.monotonic() - began) / max(1, runs), unit=" s")


def exit_of(folder: Path, command: Sequence[str]) -> str:
    """How one run ended: ``finished``, or what went wrong; its training must have been complete."""
    run_folder = Path(tempfile.mkdtemp(dir=folder, prefix="run-"))
    run_dir = RunDir(run_folder)
    config = tiny_config(
        folder,
        step_scheduler={"grad_acc_steps": 1, "max_steps": 2, "ckpt_every_steps": 1},
        dataloader={"batch_size": 1, "num_workers": 0},
    )
    run_dir.config.write_text(yaml.safe_dump(config))
    attempt = run_dir.claim_attempt()
    processes = [_start(run_dir, attempt, rank, command) for rank in range(WORLD_SIZE)]
    try:
        codes = [process.wait(TIMEOUT_S) for process in processes]
    finally:
        for process in processes:
            process.kill()
    if not any(codes):
        unfinished = [rank for rank in range(WORLD_SIZE) if not _finished(run_dir, rank)]
        return f"ranks {unfinished} left without finishing" if unfinished else "finished"
    names = [signal.Signals(-code).name if code < 0 else str(code) for code in codes if code]
    done = "after" if all(_finished(run_dir, rank) for rank in range(WORLD_SIZE)) else "before"
    return f"{' and '.join(names)} {done} the finish"


def _start(
    run_dir: RunDir, attempt: int, rank: int, command: Sequence[str]
) -> subprocess.Popen[bytes]:
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(REPOSITORY),
        "PYTHONSAFEPATH": "1",
        "SUBMITRAIN_RUN_DIR": str(run_dir.root),
        "SUBMITRAIN_ATTEMPT": str(attempt),
        "SUBMITRAIN_JOB_ID": "bench",
        "SUBMITRAIN_RANK": str(rank),
        "SUBMITRAIN_LOCAL_RANK": str(rank),
        "SUBMITRAIN_WORLD_SIZE": str(WORLD_SIZE),
        "SUBMITRAIN_LOCAL_WORLD_SIZE": str(WORLD_SIZE),
    }
    with run_dir.log(attempt, rank, "out").open("wb") as output:
        return subprocess.Popen(
            [sys.executable, *command], env=environment, stdout=output, stderr=subprocess.STDOUT
        )


def _finished(run_dir: RunDir, rank: int) -> bool:
    return any(read_events(run_dir.events(rank), kinds=frozenset({Kind.FINISH})))


def _listed(ends: Counter[str]) -> str:
    return ", ".join(f"{count} x {end}" for end, count in ends.most_common())


if __name__ == "__main__":
    main()
