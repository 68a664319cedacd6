"""Local runs: a detached session that outlives the shell or notebook which started it.

    client ──> host (this module, own session) ──> submitit's LocalExecutor ──> TrainingJob

The host exists because LocalExecutor shares its parent's process group and cannot be found again
by another process: in a session of its own nothing that happens to the terminal reaches the job,
and the line in ``submissions.jsonl`` tells everyone which processes it has.
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
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


def start_local(run_dir: RunDir, *, workdir: Path, environ: Mapping[str, str]) -> dict[str, Any]:
    """Start the job in a session of its own and return as soon as it can be found again.

    Returns what ``submissions.jsonl`` says of it: submitit's controller is the job, its pid the id.

    Raises:
        RunError: the host ended before it had started the job; the message has its last words.
    """
    run_dir.submitit.mkdir(exist_ok=True)
    announcement = run_dir.submitit / f"starting-{os.getpid()}-{time.monotonic_ns()}.json"
    try:
        start_detached(
            [sys.executable, "-m", "submitrain.launcher.submit.local", str(run_dir.root)],
            log=run_dir.submitit / HOST_LOG,
            workdir=workdir,
            environ={**environ, _ANNOUNCEMENT: str(announcement)},
            started=announcement.exists,
            what="the local job",
        )
        job: dict[str, Any] = json.loads(announcement.read_text())
        return job
    finally:
        announcement.unlink(missing_ok=True)


def start_detached(
    command: Sequence[str],
    *,
    log: Path,
    workdir: Path,
    environ: Mapping[str, str],
    started: Callable[[], bool],
    what: str,
) -> None:
    """Start a process in a session of its own, with its output in ``log``, and see it begin.

    Raises:
        RunError: it ended before it had ``started``; the message has its last words.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=workdir,
            env=environ,
            start_new_session=True,
        )
    # Reaped when it ends, however long this process lives; it outlives this process as well.
    threading.Thread(target=process.wait, name="reap-detached", daemon=True).start()
    deadline = time.monotonic() + START_TIMEOUT_S
    while not started():
        if process.poll() is not None and not started():
            last = "".join(last_lines(log, 1)) or "it said nothing"
            raise RunError(f"{what} did not start: {last} ({log})")
        if time.monotonic() > deadline:
            process.kill()
            raise RunError(f"{what} did not start in {START_TIMEOUT_S:.0f} s: see {log}")
        time.sleep(POLL_S)


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
    signal.signal(signal.SIGTERM, lambda number, _frame: process.send_signal(number))
    host, controller = ProcessRef.of(os.getpid()), ProcessRef.of(int(job.job_id))
    if host is None or controller is None:
        raise RunError("the job's controller ended at once")
    processes = {"process": controller.as_json(), "host_process": host.as_json()}
    write_json_atomically(announcement, {"job_id": job.job_id, **processes})
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
    name = "CUDA_VISIBLE_DEVICES"
    view = ["-u", name] if name not in environ else [f"{name}={environ[name]}"]
    return shlex.join(["env", *view, sys.executable])


if __name__ == "__main__":
    sys.exit(host_main(Path(sys.argv[1])))
