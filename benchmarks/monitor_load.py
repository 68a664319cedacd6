"""What watching costs: CPU of a monitor of 50 busy runs, and of looks at 1,000 runs.

``python -m benchmarks.monitor_load [--runs N] [--ticks N]``

Every run has 8 ranks and writes 20 KB/s, in one case as most trainers do (a step event each half
second, a heartbeat of each rank every 5 s, the rest into logs), in the other all of it into events.
What is written between two looks is written at once and dated as if time had passed, so that a
share of a core is CPU seconds of a look, children included, over the interval between looks.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from benchmarks.report import at_most, head, say
from submitrain.monitor.serve.service import Service
from submitrain.monitor.watch.fleet import Fleet
from submitrain.monitor.watch.poll import RunPoller
from submitrain.monitor.watch.watch import Watcher
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, list_runs, write_json_atomically
from submitrain.status import read_statuses

RANKS = 8
BYTES_PER_S = 20_000
STEP_S = 0.5
BEAT_S = 5.0
AIM_SHARE = 5.0
"""Per cent of a core."""
WATCH_S, SERVE_S, TOP_S = 30.0, 15.0, 10.0


def main() -> None:
    """Make the runs, let them write, look at them, print shares of a core."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.monitor_load")
    parser.add_argument("--runs", type=int, default=50, metavar="N")
    parser.add_argument("--ticks", type=int, default=6, metavar="N")
    parser.add_argument("--child", nargs=2, metavar=("WHAT", "DIR"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.child:
        _child(asked.child[0], Path(asked.child[1]))
        return
    head(f"{asked.runs} runs of {RANKS} ranks that write {BYTES_PER_S / 1000:g} KB/s each")
    for events in (False, True):
        kind = "all of it events" if events else "mostly logs"
        for what, interval_s in (("watch", WATCH_S), ("serve", SERVE_S), ("top", TOP_S)):
            with tempfile.TemporaryDirectory() as folder:
                fleet = Writers(Path(folder), asked.runs, all_events=events)
                share = _share(what, fleet, interval_s, asked.ticks)
            name = f"{what} every {interval_s:g} s, {kind}"
            say(name, share, at_most(AIM_SHARE), unit=" % of a core")
    with tempfile.TemporaryDirectory() as folder:
        Writers(Path(folder), 50, all_events=False).go_on(60.0)
        Writers(Path(folder), 950, all_events=False, ended=True).go_on(60.0)
        print("1,000 runs, 50 of them alive; seconds of the processor")
        for what in ("list", "serve", "top"):
            command = [sys.executable, "-m", "benchmarks.monitor_load", "--child", what, folder]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            first_s, next_s, memory_mb = json.loads(answer)
            say(f"{what}: the first look", first_s, unit=" s")
            if next_s is not None:
                say(f"{what}: the next look", next_s, unit=" s")
            say(f"{what}: peak memory", memory_mb, unit=" MB")


class Writers:
    """Run folders, and what would be written to them as time goes on."""

    def __init__(self, runs: Path, count: int, *, all_events: bool, ended: bool = False) -> None:
        self.runs, self.now, self._all_events = runs, time.time() - 3600.0, all_events
        self._steps = 0
        self.dirs = [self._make(number, ended) for number in range(count)]

    def _make(self, number: int, ended: bool) -> RunDir:
        kind = "done" if ended else "busy"
        run = RunDir(self.runs / f"{kind}{number}-20260101T000000-{number:08x}")
        run.events_dir.mkdir(parents=True)
        write_json_atomically(run.record, {"cluster": "local", "total_steps": 10**6})
        process = ProcessRef.of(os.getpid())
        submitted = {"job_id": str(number), "cluster": "local"}
        if process is not None:
            submitted["process"] = process.as_json()
        _append(run.submissions, [self._event("submitted", attempt=0, **submitted)])
        run.config.write_text("{}")
        attempt = run.claim_attempt()
        nodes = [f"n{place}" for place in range(2)]
        begun = self._event("attempt_start", attempt=attempt, nodes=nodes, world_size=RANKS)
        _append(run.attempts, [begun])
        if ended:
            write_json_atomically(run.summary, {"state": "finished"})
        return run

    def go_on(self, seconds: float) -> None:
        """Let every run write for so long."""
        begin, self.now = self.now, self.now + seconds
        first = self._steps
        self._steps += round(seconds / STEP_S)
        steps = [self._step(n, begin + (n - first) * STEP_S) for n in range(first, self._steps)]
        beats = [begin + n * BEAT_S for n in range(int(seconds / BEAT_S))]
        size = int(seconds * BYTES_PER_S)
        for run in self.dirs:
            left = size - _append(run.events(0), [*steps, *self._beats(0, beats)])
            for rank in range(1, RANKS):
                left -= _append(run.events(rank), self._beats(rank, beats))
            if self._all_events and steps:
                line = len(json.dumps(steps[0]))
                left -= _append(run.events(0), steps[-1:] * max(0, left // line))
            with run.log(1, 0, "out").open("ab") as log:
                log.write(
                    (b"step 1 loss 2.0 and so on, as trainers say\n" * (left // 43 + 1))[:left]
                )

    def _step(self, step: int, t: float) -> dict[str, Any]:
        values = {"loss": 2.0 + step % 7 / 100, "grad_norm": 1.234567, "lr": 1e-4, "epoch": 0}
        more = {
            "tokens": 65536,
            "label_tokens": 60000,
            "total_tokens": step * 65536,
            "position": step,
        }
        times = {"tokens_per_s": 131072.0, "step_s": STEP_S, "data_wait_s": 0.01, "mfu": 0.41}
        exact = {"loss_hex": (2.0).hex(), "grad_norm_hex": (1.2).hex(), "mem_bytes": 7 * 10**10}
        return self._event("step", t, step=step, **values, **more, **times, **exact)

    def _beats(self, rank: int, times: list[float]) -> list[dict[str, Any]]:
        fields = {"rank": rank, "step": self._steps, "phase": "step", "phase_age_s": 0.1}
        more = {"progress": 9, "save_progress": 0, "idle_s": 0.1}
        return [
            self._event("heartbeat", t, **fields, **more, busy_s=(t - 1.7e9) * 0.9) for t in times
        ]

    def _event(self, kind: str, t: float | None = None, **fields: Any) -> dict[str, Any]:
        when = self.now if t is None else t
        common = {"v": 1, "kind": kind, "t": when, "rank": 0, "attempt": 1, "job_id": "1"}
        return {**common, **fields}


def _append(path: Path, events: list[dict[str, Any]]) -> int:
    lines = "".join(json.dumps(event, separators=(",", ":")) + "\n" for event in events).encode()
    with path.open("ab") as file:
        return file.write(lines)


def _share(what: str, fleet: Writers, interval_s: float, ticks: int) -> float:
    """Per cent of a core; the first look, which finds everything new, does not count."""
    look = _looks(what, fleet)
    fleet.go_on(300.0)
    look()
    used = 0.0
    for _ in range(ticks):
        fleet.go_on(interval_s)
        began = _cpu_s()
        look()
        used += _cpu_s() - began
    return used / ticks / interval_s * 100


def _looks(what: str, writers: Writers) -> Callable[[], object]:
    def find() -> list[Path]:
        return list_runs(writers.runs)

    if what == "watch":
        watcher = Watcher(
            find=find,
            poller=RunPoller(),
            show=lambda report: None,
            warn=_give_up,
            clock=lambda: writers.now,
        )
        return watcher.tick
    if what == "serve":
        return Service(Fleet(find, keep_ended_s=6 * 3600.0, max_runs=200), interval_s=1.0).look
    return Fleet(find, with_ranks=False).look


def _give_up(text: str) -> NoReturn:
    sys.exit(text)


def _child(what: str, runs: Path) -> None:
    """In a process of its own: the seconds of two looks, and its peak memory."""

    def find() -> list[Path]:
        return list_runs(runs)

    looks: dict[str, Callable[[], object]] = {
        "list": lambda: read_statuses(find()),
        "serve": Service(Fleet(find, keep_ended_s=6 * 3600.0, max_runs=200), interval_s=1.0).look,
        "top": Fleet(find, with_ranks=False).look,
    }
    seconds = []
    for _ in range(1 if what == "list" else 2):
        began = _cpu_s()
        looks[what]()
        seconds.append(_cpu_s() - began)
    # Not ru_maxrss, which begins with the parent's.
    peak = Path("/proc/self/status").read_text().partition("VmHWM:")[2]
    memory_mb = int(peak.split()[0]) * 1024 / 1e6
    print(json.dumps([seconds[0], seconds[1] if len(seconds) > 1 else None, memory_mb]))


def _cpu_s() -> float:
    found = 0.0
    for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
        used = resource.getrusage(who)
        found += used.ru_utime + used.ru_stime
    return found


if __name__ == "__main__":
    main()
