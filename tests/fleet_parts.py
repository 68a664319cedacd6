"""Parts that the tests of ``serve``, ``top`` and ``status`` share: run folders that look alive."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from submitrain.monitor.alerts.rules import Finding, Rule, Severity
from submitrain.monitor.alerts.state import RunAlerts, Stage, new_alert
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.processes import ProcessRef
from submitrain.run_folder import write_json_atomically
from tests.alert_parts import FakeRun

WAIT_S = 60.0


@contextmanager
def process() -> Iterator[int]:
    """A process that is there: the supervisor of runs that look alive."""
    child = subprocess.Popen(["sleep", "600"])
    try:
        yield child.pid
    finally:
        child.kill()
        child.wait()


def run_named(runs: Path, name: str) -> FakeRun:
    """A run folder with a name as a launch gives it."""
    return FakeRun(runs, name=f"{name}-20260101T000000-0a1b2c3d")


def living(runs: Path, name: str, pid: int) -> FakeRun:
    """A local run in its second attempt, with something to say in every metric."""
    run = run_named(runs, name)
    record = {"cluster": "local", "total_steps": 100, "who": {"user": "ada"}}
    write_json_atomically(run.dir.record, record)
    reference = ProcessRef.of(pid)
    assert reference is not None
    run.submit(job_id="2", process=reference.as_json(), sbatch={"account": "physics"})
    run.begin()
    run.event("setup", backend="nccl", total_steps=100)
    run.end("hung", "restart", last_step=0)
    run.begin()
    run.event("phase", phase="first_step", step=0)
    run.steps(1, 20, lr=1e-4, tokens_per_s=12345.0, mem_bytes=7e10, data_wait_s=0.0)
    run.event("heartbeat", rank=1, step=19, phase="step")
    run.event("validation", step=20, loss=1.5)
    run.event("checkpoint", step=20, bytes=1_000_000, save_s=2.5)
    checkpoint = run.dir.checkpoints / "step-00000020"
    checkpoint.mkdir(parents=True)
    (checkpoint / "manifest.json").write_text("{}")
    lines = [f"line {number} of rank 0" for number in range(40)]
    run.dir.log(2, 0, "out").write_text("\n".join([*lines, "done 10%\r\x1b[31mdone 20%\x1b[0m\n"]))
    run.dir.log(2, 1, "err").write_text("a word of rank 1\n")
    return run


def fire(run: FakeRun) -> None:
    """What a watcher that found a full disk leaves."""
    found = Finding(Rule.DISK, "run", Severity.CRITICAL, "2 GB are free", "make room")
    alert = replace(new_alert(run.dir.run_id, found, 1000.0), stage=Stage.FIRING)
    files = AlertFiles.of(run.dir.root)
    files.prepare()
    files.save(RunAlerts(run.dir.run_id, alerts=(alert,)))


def slurm_shim(folder: Path) -> Callable[[], list[str]]:
    """Put a squeue there that says of every job that it waits; returns what lists its calls."""
    calls = folder / "calls"
    calls.touch()
    squeue = folder / "squeue"
    squeue.write_text(
        f"""#!/bin/bash
echo squeue >> {calls}
for word in "$@"; do case $word in --jobs=*) jobs=${{word#--jobs=}} ;; esac; done
for job in ${{jobs//,/ }}; do
  printf '%s\\x1fPENDING\\x1fPriority\\x1f\\x1f1\\n' "$job"
done
"""
    )
    sacct = folder / "sacct"
    sacct.write_text(f"#!/bin/bash\necho sacct >> {calls}\n")
    for path in (squeue, sacct):
        path.chmod(0o755)
    return lambda: calls.read_text().split()


def wait_for(condition: Callable[[], Any]) -> Any:
    """Wait until it holds; returns its value."""
    deadline = time.monotonic() + WAIT_S
    while not (value := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return value
