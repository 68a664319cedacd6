"""Ten runs of ten fates at once on a real Slurm: each is told, explained and reported rightly."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from submitrain.launcher.run import Run
from submitrain.monitor.cli import main
from submitrain.monitor.diagnose import diagnose_run
from submitrain.status import RunState, RunStatus, read_statuses
from tests.cluster import SlurmCluster
from tests.receivers import HttpReceiver, http_receiver
from tests.supervised import REPOSITORY
from tests.supervised_slurm import SlurmCountingRun, slurm_run

pytestmark = [pytest.mark.slurm, pytest.mark.ranks]

LONG, SHORT = 100_000, 60
Told = set[tuple[str, str]]


@dataclass(frozen=True)
class Fate:
    """What becomes of a run, and what has to be said of it."""

    state: RunState
    told: Told
    """Rules and events of its alerts."""
    plan: dict[str, Any] = field(default_factory=dict)
    nodes: int = 1
    steps: int = LONG
    monitor: dict[str, Any] = field(default_factory=dict)
    sbatch: dict[str, Any] = field(default_factory=dict)
    attempts: int = 1
    diagnosis: str = ""
    """Class of what ended attempt ``explained``."""
    explained: int = 1
    rank: int | None = None
    report: str = ""
    """What its report says, among other things."""


def fault(kind: str, rank: int, *attempts: int) -> dict[str, Any]:
    return {"fail": {"kind": kind, "rank": rank, "step": 12, "attempts": attempts or (1,)}}


FAILED: Told = {("failed", "firing")}
FINISHED: Told = {("finished", "firing")}
HANG: Told = {("hang", "firing"), ("hang", "resolved")}
FATES: dict[str, Fate] = {
    "healthy": Fate(RunState.RUNNING, set(), nodes=2),
    "pending": Fate(RunState.QUEUED, {("queue", "firing")}, monitor={"queue_s": "1s"}, attempts=0),
    "preempted": Fate(
        RunState.FINISHED,
        FINISHED,
        steps=150,
        sbatch={"nodelist": "node4"},
        attempts=2,
        diagnosis="preempted",
        report="preempted",
    ),
    "hung": Fate(
        RunState.FINISHED,
        HANG | FINISHED,
        fault("hang", 1),
        nodes=2,
        steps=SHORT,
        monitor={"hang_step_s": 2},
        attempts=2,
        diagnosis="nccl_timeout",
        rank=1,
        report="no progress for",
    ),
    "straggling": Fate(
        RunState.RUNNING,
        {("straggler", "firing")},
        {"busy_s": {"1": 0.1}},
        nodes=2,
        monitor={"straggler_windows": 3},
    ),
    "memory": Fate(
        RunState.FAILED,
        FAILED,
        fault("gpu_memory", 0, 1, 2),
        attempts=2,
        diagnosis="cuda_oom",
        explained=2,
        rank=0,
        report="CUDA out of memory",
    ),
    "nan": Fate(
        RunState.FAILED,
        FAILED,
        fault("nan", 0),
        diagnosis="nan_loss",
        rank=0,
        report="not finite at step 13",
    ),
    "disk": Fate(
        RunState.FAILED,
        FAILED,
        fault("disk", 0),
        diagnosis="disk_full",
        rank=0,
        report="No space left on device",
    ),
    "cancelled": Fate(
        RunState.CANCELLED, FAILED, diagnosis="preempted", report="cancelled by the user"
    ),
    "finished": Fate(RunState.FINISHED, FINISHED, steps=SHORT, nodes=2, diagnosis="benign"),
}


def test_ten_fates_at_once_are_told_explained_and_reported(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    with contextlib.ExitStack() as stack:
        web = stack.enter_context(http_receiver())
        runs = {
            name: stack.enter_context(run) for name, run in submit(slurm_cluster, tmp_path, web)
        }
        stack.enter_context(watching(tmp_path))
        play(slurm_cluster, runs)
        wait_for(
            lambda: all(told(web, name) >= fate.told for name, fate in FATES.items()),
            lambda: str({name: (told(web, name), runs[name].causes()) for name in FATES}),
        )
        found = {
            one.run_id: one for one in read_statuses(run.run_dir.root for run in runs.values())
        }
        for name, run in runs.items():
            check(name, found[name], run, told(web, name))
        keep_reports(runs)


def submit(
    cluster: SlurmCluster, root: Path, web: HttpReceiver
) -> Iterator[tuple[str, contextlib.AbstractContextManager[SlurmCountingRun]]]:
    """All runs; what the pending one waits for has failed."""
    doomed = cluster.sbatch("false")
    for name, fate in FATES.items():
        waits = {"dependency": f"afterok:{doomed}"} if name == "pending" else {}
        place = {} if "nodelist" in fate.sbatch else {"exclude": "node4"}
        plan = {"steps": fate.steps, "step_s": 0.1, "save_every": 5, **fate.plan}
        limits = {"straggler_windows": 10_000, "interval_s": 1, **fate.monitor}
        hang = {"silence_s": 10, "step_s": 10} if name == "hung" else {}
        yield (
            name,
            slurm_run(
                cluster,
                root / name,
                plan=plan,
                nodes=fate.nodes,
                sbatch={**fate.sbatch, **waits, **place},
                resilience={"hang": hang},
                top={
                    "alerts": {"webhook_url": f"{web.url}/{name}", "group_s": 0},
                    "monitor": limits,
                },
            ),
        )


def play(cluster: SlurmCluster, runs: dict[str, SlurmCountingRun]) -> None:
    """The fates that come from outside."""
    runs["cancelled"].wait_for_step(3, timeout_s=180)
    Run(runs["cancelled"].run_dir.root).cancel()
    runs["preempted"].wait_for_step(10, timeout_s=180)
    shape = ["--partition=high", "--qos=high", "--nodes=1", "--exclusive", "--nodelist=node4"]
    cluster.sbatch("sleep 1", *shape)


@contextlib.contextmanager
def watching(runs_dir: Path) -> Iterator[None]:
    """One watcher for all of them."""
    command = [sys.executable, "-m", "monitor", "watch", "--all", "--runs-dir", str(runs_dir)]
    watcher = subprocess.Popen(
        [*command, "--interval", "1"],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.DEVNULL,
    )
    try:
        yield
        assert watcher.poll() is None
    finally:
        watcher.terminate()
        watcher.wait()


def told(web: HttpReceiver, name: str) -> Told:
    """Rules and events that arrived for a run."""
    bodies = [one.json for one in list(web.requests) if one.path == f"/{name}"]
    return {(entry["rule"], entry["event"]) for body in bodies for entry in body["entries"]}


def wait_for(condition: Callable[[], bool], say: Callable[[], str], timeout_s: float = 240) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, say()
        time.sleep(0.2)


def check(name: str, status: RunStatus, run: SlurmCountingRun, alerts: Told) -> None:
    """Status, alerts, diagnosis and report of one run."""
    fate = FATES[name]
    assert (name, status.state, status.attempt) == (name, fate.state, fate.attempts)
    # A watcher that looks between the NaN and the end tells of that as well.
    assert (name, alerts - {("loss", "firing"), ("loss", "resolved")}) == (name, fate.told)
    if name == "pending":
        assert status.why.startswith("DependencyNeverSatisfied: the job it depends on failed")
    if fate.diagnosis:
        verdict = diagnose_run(run.run_dir.root, attempt=fate.explained)
        assert (name, str(verdict.kind)) == (name, fate.diagnosis)
        if fate.rank is not None:
            node = run.starts()[0]["nodes"][fate.rank]
            assert (name, verdict.rank, verdict.node) == (name, fate.rank, node)
    path = run.run_dir.reports / "report.html"
    if fate.state.ended:
        assert fate.report in path.read_text(), name  # the supervisor's, without being asked
    assert main(["report", str(run.run_dir.root)]) == 0
    page = path.read_text()
    assert f"{fate.state} at step" in page
    for rule, event in fate.told:
        assert f"<td>{event}</td>" in page, (name, rule, event)
    assert ("<td>webhook</td>" in page) == bool(fate.told)


def keep_reports(runs: dict[str, SlurmCountingRun]) -> None:
    """For people who want to look at them: SUBMITRAIN_KEEP_REPORTS names a folder."""
    folder = os.environ.get("SUBMITRAIN_KEEP_REPORTS")
    for name, run in runs.items() if folder else ():
        text = (run.run_dir.reports / "report.html").read_text()
        (Path(folder or "") / f"{name}.html").write_text(text)
