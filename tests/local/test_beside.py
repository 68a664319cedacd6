"""A watcher that starts with the run: whatever is killed, the end is told, and told once."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from submitrain.config.resolve import load_resolved
from submitrain.events import Kind, append_line
from submitrain.launcher.plan.plan import make_plan
from submitrain.launcher.plan.watcher import watcher_sbatch, watcher_warnings
from submitrain.launcher.supervisor.watcher import ensure_watcher_job
from submitrain.monitor.audit.ledger import read_trail
from submitrain.monitor.watch.sidecar import Sidecar
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.slurm.client import query_jobs
from tests.cluster import SlurmCluster
from tests.config_parts import load
from tests.receivers import HttpReceiver, http_receiver
from tests.supervised import CountingRun, counting_run
from tests.supervised_slurm import SlurmCountingRun, slurm_run


def watched(web: HttpReceiver, how: str = "sidecar") -> dict[str, Any]:
    """Sections of a run that is watched in short intervals."""
    return {
        "alerts": {"webhook_url": f"{web.url}/hook", "group_s": 0},
        "monitor": {"autostart": how, "interval_s": 0.5, "straggler_windows": 10_000},
    }


def told(web: HttpReceiver) -> list[tuple[str, str]]:
    """Rules and events, in the order in which they arrived."""
    entries = [entry for one in web.requests for entry in one.json["entries"]]
    return [(entry["rule"], entry["event"]) for entry in entries]


def watchers(run_dir: RunDir) -> list[int]:
    """Processes that watch this run."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"submitrain.monitor.watch.sidecar" in command and str(run_dir.root).encode() in command:
            found.append(int(folder.name))
    return found


def wait_for(condition: Callable[[], bool], timeout_s: float = 60.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def as_launched(run: CountingRun) -> None:
    """What a launch on this machine notes besides."""
    assert run.process is not None
    process = ProcessRef.of(run.process.pid)
    assert process is not None
    write_json_atomically(run.run_dir.record, {"cluster": "local"})
    line = {"v": 1, "kind": "submitted", "t": time.time(), "cluster": "local", "attempt": 0}
    line |= {"job_id": str(process.pid), "process": process.as_json()}
    append_line(run.run_dir.submissions, line)


@pytest.mark.ranks
def test_a_local_run_has_a_watcher_again_when_it_is_killed_and_its_end_is_told(
    tmp_path: Path,
) -> None:
    with http_receiver() as web:
        plan = {"steps": 100_000, "step_s": 0.05}
        with counting_run(tmp_path / "run", plan=plan, top=watched(web)) as run:
            as_launched(run)
            wait_for(lambda: len(watchers(run.run_dir)) == 1)
            (first,) = watchers(run.run_dir)
            os.kill(first, signal.SIGKILL)
            wait_for(lambda: watchers(run.run_dir) not in ([], [first]))
            run.wait_for_step(3)
            run.signal(signal.SIGKILL)  # nobody is left who could say why
            run.wait()
            wait_for(lambda: not watchers(run.run_dir))
    assert told(web) == [("failed", "firing")]
    assert [one["outcome"] for one in read_trail(run.run_dir).entries][-2:] == [
        "raised",
        "delivered",
    ]


@pytest.mark.slurm
@pytest.mark.ranks
def test_in_slurm_every_attempt_has_a_watcher_and_the_end_is_told_once(
    slurm_cluster: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in slurm_cluster.env.items():
        monkeypatch.setenv(name, value)
    long = {"steps": 100_000, "step_s": 0.1, "save_every": 5}
    fault = {"kind": "kill", "rank": 1, "step": 40}
    with http_receiver() as web, http_receiver() as other_web:
        beside = slurm_run(slurm_cluster, tmp_path / "a", plan=long, top=watched(web))
        own_job = slurm_run(
            slurm_cluster,
            tmp_path / "b",
            plan={**long, "steps": 150, "fail": fault},
            top=watched(other_web, "job"),
        )
        with beside as run, own_job as other:
            first = submit_watcher(other)
            run.wait_for_step(3, timeout_s=120)
            wait_for(lambda: len(watchers(run.run_dir)) >= 1)
            kill_supervisor(run)
            slurm_cluster.run("scancel", "--signal=KILL", "--full", first)
            # Slurm requeues it, and the next attempt is watched as well.
            run.wait_for(lambda: len(run.starts()) == 2, timeout_s=180)
            run.wait_for(lambda: run.events(Kind.STEP)[-1]["attempt"] == 2, timeout_s=60)
            wait_for(lambda: len(watchers(run.run_dir)) >= 1)
            cancel(run)
            run.wait_for(run.run_dir.summary.exists, timeout_s=60)
            wait_for(lambda: ("failed", "firing") in told(web))
            wait_for(lambda: not watchers(run.run_dir))
            assert "<td>webhook</td>" in (run.run_dir.reports / "report.html").read_text()
            other.wait_for(other.run_dir.summary.exists, timeout_s=180)
            second = submit_watcher(other)
            wait_for(lambda: ("finished", "firing") in told(other_web))
            wait_for(lambda: query_jobs([second])[second].ended)
        assert len(other.starts()) == 2
    assert first != second
    assert told(web) == [("failed", "firing")]
    assert told(other_web) == [("finished", "firing")]


def submit_watcher(run: SlurmCountingRun) -> str:
    """The job of its watcher, as launch submits it."""
    config = load_resolved(run.run_dir.config, os.environ)
    light = {**watcher_sbatch(config), "mem": "100M", "time": 5}
    return ensure_watcher_job(run.run_dir, light)


def kill_supervisor(run: SlurmCountingRun) -> None:
    """SIGKILL to the batch job's own Python."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            command = (folder / "cmdline").read_bytes()
        except OSError:
            continue
        words = [os.fsdecode(word) for word in command.split(b"\0")]
        mine = "submitit.core._submit" in words and str(run.run_dir.submitit) in words
        if mine and Path(words[0]).name.startswith("python"):
            os.kill(int(folder.name), signal.SIGKILL)


def cancel(run: SlurmCountingRun) -> None:
    write_json_atomically(run.run_dir.cancel_request, {"by": "me", "at": time.time()})
    run.cluster.run("scancel", str(run.job_id))


def test_an_orphan_waits_for_what_slurm_makes_of_the_job_and_goes(tmp_path: Path) -> None:
    now, alive = [100.0], [True]
    orphan = Sidecar(tmp_path, lambda: alive[0], orphan_s=60, clock=lambda: now[0])
    assert not orphan.leaves([])
    alive[0] = False
    assert not orphan.leaves([])
    now[0] += 61
    assert orphan.leaves([])
    assert Sidecar(tmp_path / "gone").leaves([])
    assert not Sidecar(tmp_path).leaves([])


@pytest.mark.parametrize(
    ("monitor", "cluster", "text"),
    [
        ({}, "slurm", "none: start `python -m monitor watch`"),
        ({"autostart": False}, "slurm", "none: start"),
        ({"autostart": "beside"}, "slurm", "on the job's first node"),
        ({"autostart": "sidecar"}, "local", "on this machine"),
        ({"autostart": "job"}, "local", "there is no Slurm for a job of its own"),
        (
            {"autostart": "job", "job": {"partition": "cpu", "mem": "1G", "time": "1d"}},
            "slurm",
            "a Slurm job of its own: 1 CPU, 1G, partition cpu, 1-00:00:00, requeued until",
        ),
    ],
)
def test_the_plan_says_who_watches(monitor: dict[str, Any], cluster: Any, text: str) -> None:
    plan = make_plan(load({"monitor": monitor}), cluster=cluster, gpus_available=False)
    assert text in plan.render()
    assert (plan.watcher_sbatch is not None) == (plan.watcher.startswith("a Slurm job"))


def test_a_variable_that_the_watcher_needs_is_missed_before_the_launch() -> None:
    alerts = {"slack_webhook": "${SLACK_WEBHOOK_URL}"}
    config = load({"monitor": {"autostart": "sidecar"}, "alerts": alerts}).config
    (caution,) = watcher_warnings(config, {})
    assert "alerts.slack_webhook: the environment variable SLACK_WEBHOOK_URL is not set" in caution
    assert not list(watcher_warnings(config, {"SLACK_WEBHOOK_URL": "https://x/y"}))
    nobody = load({"monitor": {"autostart": "sidecar"}}).config
    assert "names no channel" in next(watcher_warnings(nobody, {}))
    assert not list(watcher_warnings(nobody, {"EMAIL_ALERTS": "ada@example.org"}))
