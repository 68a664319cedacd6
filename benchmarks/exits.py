"""How many two-rank runs abort after they have done their work.

``python -m benchmarks.exits [runs] [--control RUNS]``

torch 2.13 with gloo now and then aborts a process at its exit, after a good run ("terminate called
without an active exception"); under Slurm that is a failed job. Every run here is a whole training
of two steps with background checkpoints, in two fresh processes of ``launcher.worker.rank``. The
control
leaves by the interpreter's own exit instead: it shows what would happen otherwise.
"""

from __future__ import annotations

import argparse
import signal
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.report import at_most, head, say
from submitrain.events import Kind, read_events
from submitrain.run_folder import RunDir
from tests import ranks
from tests.tiny import tiny_config

WORLD_SIZE = 2
FINISHED = "finished"
INTERPRETERS_EXIT = (
    "import sys; from submitrain.signals import StopFlag, install_handlers; flag = StopFlag(); "
    "install_handlers(flag); from submitrain.launcher.worker.run import run_rank; "
    "sys.exit(run_rank(flag))"
)


def main() -> None:
    """Run, count, print; the control's runs are spread between ours."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.exits")
    parser.add_argument("runs", nargs="?", type=int, default=100)
    parser.add_argument("--control", type=int, default=25, metavar="RUNS")
    asked = parser.parse_args()
    head(f"exits of {asked.runs} two-rank runs, and of {asked.control} control runs")
    ours: Counter[str] = Counter()
    control: Counter[str] = Counter()
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        for number in range(asked.runs):
            ours[exit_of(Path(folder))] += 1
            due = asked.control * (number + 1) // asked.runs
            while control.total() < due:
                control[exit_of(Path(folder), program=("-c", INTERPRETERS_EXIT))] += 1
    _tell("runs of ours that did not end with 0", ours, aim=True)
    _tell("control runs that did not end with 0", control, aim=False)
    runs = ours.total() + control.total()
    say("seconds per run", (time.monotonic() - began) / max(1, runs), unit=" s")


def exit_of(folder: Path, program: tuple[str, ...] = ranks.RANK) -> str:
    """How one run ended: ``finished``, or what went wrong and whether its work was done by then."""
    config = tiny_config(
        folder,
        step_scheduler={"grad_acc_steps": 1, "max_steps": 2, "ckpt_every_steps": 1},
        dataloader={"batch_size": 1, "num_workers": 0},
    )
    home = Path(tempfile.mkdtemp(dir=folder, prefix="run-"))
    started = ranks.start(home, config, WORLD_SIZE, program)
    codes = started.wait()
    done = all(_finished(started.run_dir, rank) for rank in range(WORLD_SIZE))
    if not any(codes):
        return FINISHED if done else "0 without a finish"
    names = [signal.Signals(-code).name if code < 0 else str(code) for code in codes if code]
    return f"{' and '.join(names)} {'after' if done else 'before'} the finish"


def _finished(run_dir: RunDir, rank: int) -> bool:
    return any(read_events(run_dir.events(rank), kinds=frozenset({Kind.FINISH})))


def _tell(what: str, ends: Counter[str], *, aim: bool) -> None:
    runs = ends.total()
    note = ", ".join(f"{count} x {end}" for end, count in ends.most_common())
    say(f"{what}, of {runs}", runs - ends[FINISHED], at_most(0) if aim else None, note=note)


if __name__ == "__main__":
    main()
