"""Local runs: a detached session that outlives the shell or notebook which started it.

    client ──> host (this module, own session) ──> submitit's LocalExecutor ──> TrainingJob

The host exists because LocalExecutor shares its parent's process group and cannot be found again
by another process: in a session of its own nothing that happens to the terminal reaches the job,
and ``submitit/local-<job id>.json`` tells everyone which process it is.
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from submitrain.errors import RunError
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.text import last_lines

START_TIMEOUT_S = 60.0
POLL_S = 0.05
NO_LIMIT_MIN = 10 * 365 * 24 * 60
"""submitit's own time limit must never strike: the supervisor keeps the limits."""
HOST_LOG = "local_host.log"
_ANNOUNCEMENT = "SUBMITRAIN_LOCAL_ANNOUNCEMENT"


@dataclass(frozen=True)
class LocalJob:
    """The processes of one local submission: submitit's controller is the job, its pid the id."""

    job_id: str
    controller: ProcessRef
    host: ProcessRef

    def as_json(self) -> dict[str, Any]:
        """For ``submissions.jsonl``."""
        return {
            "job_id": self.job_id,
            "process": self.controller.as_json(),
            "host_process": self.host.as_json(),
        }


def start_local(run_dir: RunDir, *, workdir: Path, environ: Mapping[str, str]) -> LocalJob:
    """Start the job in a session of its own and return as soon as it can be found again.

    Raises:
        RunError: the host ended before it had started the job; the message has its last words.
    """
    run_dir.submitit.mkdir(exist_ok=True)
    announcement = run_dir.submitit / f"starting-{os.getpid()}-{time.monotonic_ns()}.json"
    log = run_dir.submitit / HOST_LOG
    with log.open("ab") as output:
        host = subprocess.Popen(
            [sys.executable, "-m", "submitrain.launcher.submit.local", str(run_dir.root)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=workdir,
            env={**environ, _ANNOUNCEMENT: str(announcement)},
            start_new_session=True,
        )
    try:
        _await_announcement(announcement, host, log)
        return _read_announcement(announcement)
    finally:
        announcement.unlink(missing_ok=True)
        # Reaped when it ends, however long this process lives; it outlives this process as well.
        threading.Thread(target=host.wait, name="reap-local-host", daemon=True).start()


def _await_announcement(path: Path, host: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not path.exists():
        if host.poll() is not None and not path.exists():
            said = (last_lines(log, 1) or ["it said nothing"])[0]
            raise RunError(f"the local job did not start: {said} ({log})")
        if time.monotonic() > deadline:
            host.kill()
            raise RunError(f"the local job did not start in {START_TIMEOUT_S:.0f} s: see {log}")
        time.sleep(POLL_S)


def _read_announcement(path: Path) -> LocalJob:
    value = json.loads(path.read_text())
    controller, host = (
        ProcessRef.from_json(value["process"]),
        ProcessRef.from_json(value["host_process"]),
    )
    assert controller is not None and host is not None
    return LocalJob(value["job_id"], controller, host)


def host_main(root: Path) -> int:
    """Run the job under submitit's LocalExecutor and wait; the exit code is the job's."""
    from submitit import LocalExecutor

    from submitrain.launcher.supervisor.job import TrainingJob

    for ignored in (signal.SIGHUP, signal.SIGINT):
        signal.signal(ignored, signal.SIG_IGN)
    announcement = Path(os.environ.pop(_ANNOUNCEMENT))
    run_dir = RunDir(root)
    executor = LocalExecutor(folder=run_dir.submitit, python=_python_command(os.environ))
    executor.update_parameters(timeout_min=NO_LIMIT_MIN, tasks_per_node=1, nodes=1)
    job = executor.submit(TrainingJob(str(root)))
    process = job._process
    assert process is not None
    _forward_term(process)
    _announce(announcement, job.job_id)
    code = process.wait()
    write_json_atomically(
        run_dir.submitit / f"{job.job_id}_ended.json",
        {"job_id": job.job_id, "ended_at": time.time(), "exit_code": code},
    )
    return 0 if code == 0 else 1


def _python_command(environ: Mapping[str, str]) -> str:
    """Python for LocalExecutor, which hides all GPUs unless asked for some: give back the view.

    Source: submitit 1.5.4, ``local.py`` sets CUDA_VISIBLE_DEVICES to the requested GPUs, and takes
    integers only (no UUIDs, no MIG names).
    """
    devices = environ.get("CUDA_VISIBLE_DEVICES")
    view = (
        ["-u", "CUDA_VISIBLE_DEVICES"] if devices is None else [f"CUDA_VISIBLE_DEVICES={devices}"]
    )
    return shlex.join(["env", *view, sys.executable])


def _forward_term(process: subprocess.Popen[bytes]) -> None:
    def forward(number: int, _frame: FrameType | None) -> None:
        process.send_signal(number)

    signal.signal(signal.SIGTERM, forward)


def _announce(path: Path, job_id: str) -> None:
    host, controller = ProcessRef.of(os.getpid()), ProcessRef.of(int(job_id))
    if host is None or controller is None:
        raise RunError("the job's controller ended at once")
    job = LocalJob(job_id, controller, host)
    write_json_atomically(path, job.as_json())


if __name__ == "__main__":
    sys.exit(host_main(Path(sys.argv[1])))
