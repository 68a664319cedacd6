"""From a rank's SIGKILL to the first new optimizer step, part by part.

``python -m benchmarks.recovery [--rounds 3] [--no-slurm]``

Local: two ranks, rank 1 is killed after a checkpoint; the measure is the ranks' own cold start in
the same run. On a private Slurm: the same kill, repaired in place, against a requeue of the same
job. There the wait before a requeued job may start is shortened to ``cred_expire_s`` + 1 seconds;
with Slurm's default it is 121 s, and the queue comes on top.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

from benchmarks.phases import PARTS, Start, rank_pid, start_of, steps
from benchmarks.report import at_most, head, median_ratio, say, spread, table
from benchmarks.small import small_config
from submitrain.events import read_events
from submitrain.launcher import Run, launch
from submitrain.run_folder import RunDir
from tests.cluster import ClusterOptions, SlurmCluster, missing_packages

WAIT_S = 300.0
KILL_AT_STEP = 6
"""One after the checkpoint of step 5."""
DEFAULT_REQUEUE_WAIT_S = 121.0
"""Slurm's default: a credential's 120 s and one more."""
MOST_OF_COLD_START = 1.3


@dataclass(frozen=True)
class Recovery:
    """One kill: what came before the new ranks were spawned, then their start."""

    detected_s: float
    """Kill to the supervisor having reaped the dead rank."""
    others_s: float
    """From then to the last of the other ranks being gone."""
    decided_s: float
    """From then to the next attempt: settle, decide, record, pause."""
    start: Start

    @property
    def total_s(self) -> float:
        """Kill to the first optimizer step of the new ranks."""
        return self.detected_s + self.others_s + self.decided_s + self.start.total_s

    @property
    def seconds(self) -> dict[str, float]:
        """All parts in order."""
        before = {
            "detected": self.detected_s,
            "others ended": self.others_s,
            "decided": self.decided_s,
        }
        return before | self.start.seconds


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.recovery")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-slurm", action="store_true")
    asked = parser.parse_args()
    head(f"recovery from a killed rank, {asked.rounds} rounds")
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder)
        _fill_caches(home)
        _tell_local([local(home) for _ in range(asked.rounds)])
        if asked.no_slurm:
            return
        options = ClusterOptions(accounting=False, nodes=2)
        if missing := missing_packages(options):
            print(f"on Slurm: not measured, these packages are missing: {', '.join(missing)}")
            return
        with SlurmCluster.start(options) as cluster, patch.dict(os.environ, cluster.env):
            _tell_slurm([on_slurm(home, cluster) for _ in range(asked.rounds)], options)


def local(home: Path) -> tuple[Start, Recovery]:
    """Cold start and recovery of one local run."""
    with ExitStack() as stack:
        run = _launch(home, stack, cluster="local", nodes=1, tasks=2)
        _wait(lambda: _last_step(run) >= KILL_AT_STEP, run)
        return start_of(run.folder, 1), recover(run)


def recover(run: Run) -> Recovery:
    """Kill rank 1 of the run's first attempt, and time what follows."""
    victim, other = rank_pid(run.folder, 1), rank_pid(run.folder, 0)
    with Watcher(victim, other) as gone:
        killed = time.time()
        os.kill(victim, signal.SIGKILL)
        _wait(lambda: bool(steps(run.folder, 2)), run)
    start = start_of(run.folder, 2)
    detected = gone.at[victim]
    # The other one may have been reaped in the same look as the first.
    others = max(detected, gone.at[other])
    return Recovery(detected - killed, others - detected, start.began - others, start)


def on_slurm(home: Path, cluster: SlurmCluster) -> tuple[float, float, float]:
    """Seconds in place; seconds by requeue; of those, seconds until the job ran again."""
    with ExitStack() as stack:
        run = _launch(home, stack, cluster="slurm", nodes=2, tasks=1)
        _wait(lambda: _last_step(run) >= KILL_AT_STEP, run)
        killed = time.time()
        os.kill(rank_pid(run.folder, 1), signal.SIGKILL)
        _wait(lambda: bool(steps(run.folder, 2)), run)
        in_place_s = steps(run.folder, 2)[0]["t"] - killed
        _wait(lambda: _last_step(run) >= 2 * KILL_AT_STEP, run)
        job_id = str(list(read_events(RunDir(run.folder).submissions))[-1]["job_id"])
        asked = time.time()
        cluster.run("scontrol", "requeue", job_id)
        _wait(lambda: bool(steps(run.folder, 3)), run)
        again = start_of(run.folder, 3)
        return in_place_s, again.first_step - asked, again.began - asked


class Watcher:
    """Notes when processes are gone, that is reaped, to 2 ms."""

    def __init__(self, *pids: int) -> None:
        self.at: dict[int, float] = {}
        self._waiting = set(pids)
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Watcher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.join()

    def _watch(self) -> None:
        deadline = time.monotonic() + WAIT_S
        while self._waiting and time.monotonic() < deadline:
            for pid in [pid for pid in self._waiting if not Path(f"/proc/{pid}").exists()]:
                self.at[pid] = time.time()
                self._waiting.remove(pid)
            time.sleep(0.002)


def _fill_caches(home: Path) -> None:
    """Tokenize once, so that every start measured finds its data ready."""
    brief = {"max_steps": 1, "warmup_steps": 0}
    config = small_config(home, step_scheduler=brief, checkpoint={"enabled": False})
    launch(config, cluster="local").wait(WAIT_S)


def _launch(home: Path, stack: ExitStack, *, cluster: str, nodes: int, tasks: int) -> Run:
    slurm = {"nodes": nodes, "ntasks_per_node": tasks, "cpus_per_task": 1, "time": "20m"}
    run = launch(small_config(home, slurm=slurm), cluster=cluster)
    stack.callback(_end, run)
    return run


def _end(run: Run) -> None:
    run.cancel()
    run.wait(WAIT_S)


def _last_step(run: Run) -> int:
    return max((step["step"] for step in steps(run.folder)), default=0)


def _wait(condition: Callable[[], bool], run: Run) -> None:
    deadline = time.monotonic() + WAIT_S
    while not condition():
        if time.monotonic() > deadline or run.run_dir.summary.exists():
            raise RuntimeError(f"waited in vain: {run.status()}\n{run.logs()}")
        time.sleep(0.02)


def _tell_local(rounds: list[tuple[Start, Recovery]]) -> None:
    cold, recoveries = [start for start, _ in rounds], [recovery for _, recovery in rounds]
    rows = {
        part: [
            statistics.median(one.seconds.get(part, 0.0) for one in column)
            for column in (cold, recoveries)
        ]
        for part in ("detected", "others ended", "decided", *PARTS)
    }
    table("local, seconds, medians", ["cold start", "recovery"], rows)
    for name, totals in (
        ("cold start, spawn to first step", [start.total_s for start in cold]),
        ("recovery, kill to first new step", [one.total_s for one in recoveries]),
    ):
        say(name, statistics.median(totals), unit=" s", note=spread(totals))
    gaps = [one.detected_s + one.others_s + one.decided_s for one in recoveries]
    say("  of which until new ranks were spawned", statistics.median(gaps), unit=" s")
    ratio, all_of_them = median_ratio(
        [one.total_s for one in recoveries], [start.total_s for start in cold]
    )
    say("recovery / cold start", ratio, at_most(MOST_OF_COLD_START), unit=" x", note=all_of_them)


def _tell_slurm(rounds: list[tuple[float, float, float]], options: ClusterOptions) -> None:
    in_place, requeued, waits = (list(column) for column in zip(*rounds, strict=True))
    for name, seconds in (
        ("Slurm, in place: kill to first new step", in_place),
        ("Slurm, scontrol requeue to first new step", requeued),
        ("  of which until the job ran again", waits),
    ):
        say(name, statistics.median(seconds), unit=" s", note=spread(seconds))
    ratio, all_of_them = median_ratio(in_place, requeued)
    say("in place / requeue, here", ratio, at_most(1.0), unit=" x", note=all_of_them)
    longer = DEFAULT_REQUEUE_WAIT_S - (options.cred_expire_s + 1)
    usual = [seconds + longer for seconds in requeued]
    ratio, _ = median_ratio(in_place, usual)
    say("in place / requeue, with Slurm's default wait of 121 s", ratio, unit=" x", note="computed")


if __name__ == "__main__":
    main()
