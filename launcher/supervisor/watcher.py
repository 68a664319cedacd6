"""Sees that every attempt has a watcher (``monitor.autostart``), also as a light Slurm job.

A watcher is a process of its own, since it has to survive the supervisor and must never hold it up.
Two of them do no harm: locks in the run folder make them share the work (``monitor.alerts.store``).

``python -m submitrain.launcher.supervisor.watcher RUN`` submits the watcher's job where there is
none; a supervisor does that before its later attempts.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog

from submitrain.config import RunConfig
from submitrain.config.resolve import load_resolved
from submitrain.errors import SubmitrainError
from submitrain.launcher.plan.watcher import watched_by, watcher_sbatch
from submitrain.launcher.submit.submit import RecordedLaunch, make_executor, submit_callable
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.slurm.client import query_jobs

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission


LOG_NAME = "watcher.log"
AGAIN_S = 5.0
"""Before a watcher that was killed is replaced."""
SHUTDOWN_S = 60.0
"""How long a job that ends waits for its watcher to tell of it: with the job, Slurm ends all of its
processes. After a cancel, Slurm's KillWait ends the wait earlier."""
IGNORE_SIGNALS = ("sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "watcher")
"""Slurm sends TERM to everything in a job that ends, also to what has only just begun."""
FOLDER = "watcher"
"""Below ``submitit/``: pickles, scripts, logs, and ``job.json`` with the id."""

log = structlog.get_logger(__name__)


@dataclass
class RunWatcher:
    """The supervisor's side; ``kind``: off, sidecar or job."""

    run_dir: RunDir
    kind: str
    on_slurm: bool
    _keeper: threading.Thread | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, run_dir: RunDir, config: RunConfig, *, on_slurm: bool) -> RunWatcher:
        """The watcher that the configuration asks for."""
        return cls(run_dir, watched_by(config, "slurm" if on_slurm else "local"), on_slurm)

    def ensure(self, attempt: int) -> None:
        """Before an attempt: see that there is a watcher; one that cannot start stops nobody."""
        if self.kind == "off" or (self._keeper is not None and self._keeper.is_alive()):
            return
        if self.kind == "job" and attempt < 2:
            return  # the client has submitted it, or is about to
        work = self._keep_process if self.kind == "sidecar" else self._ensure_watcher_job
        self._keeper = threading.Thread(target=work, name="watcher", daemon=True)
        self._keeper.start()

    def shutdown(self) -> None:
        """After the end of the run: wait until it is told, where the process ends with the job."""
        self._ending.set()
        if self._keeper is None or self.kind != "sidecar" or not self.on_slurm:
            return
        self._keeper.join(SHUTDOWN_S)
        if self._keeper.is_alive():
            next_step = f"python -m monitor watch {self.run_dir.root} --once"
            log.warning("alerts_not_delivered", waited_s=SHUTDOWN_S, next_step=next_step)

    def _keep_process(self) -> None:
        arguments = [str(os.getpid()), "slurm" if self.on_slurm else "local"]
        while (process := self._start("submitrain.monitor.watch.sidecar", *arguments)) is not None:
            if process.wait() >= 0:
                return
            log.warning("watcher_killed", signal=-process.returncode)
            self._ending.wait(AGAIN_S)

    def _ensure_watcher_job(self) -> None:
        if (process := self._start("submitrain.launcher.supervisor.watcher")) is not None:
            process.wait()

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes] | None:
        path = self.run_dir.monitor / LOG_NAME
        python = [sys.executable, "-m", module, str(self.run_dir.root)]
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as words:
                return subprocess.Popen(
                    [*IGNORE_SIGNALS, *python, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    start_new_session=True,
                )
        except OSError as error:
            log.warning("no_watcher", why=str(error))
            return None


@dataclass(frozen=True)
class WatcherJob:
    """Watches the run in ``run_dir``; submitit requeues it at its time limit (``checkpoint``)."""

    run_dir: str

    def __call__(self) -> None:
        """Watch until the run has ended and everything is told."""
        from submitrain.monitor.watch.sidecar import watch_run

        watch_run(Path(self.run_dir))

    def checkpoint(self) -> DelayedSubmission:
        """submitit's requeue hook: what the watcher knows is in the run folder."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def ensure_watcher_job(run_dir: RunDir, parameters: Mapping[str, Any]) -> str:
    """The id of a watcher's job that waits or runs; one is submitted where there is none.

    Raises:
        SubmitrainError: Slurm refuses it, or does not answer.
    """
    folder = run_dir.submitit / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    with _lock(folder / "lock"):
        try:
            job_id = str(json.loads((folder / "job.json").read_text())["job_id"])
        except (OSError, ValueError, KeyError, TypeError):
            job_id = ""
        if job_id:
            job = query_jobs([job_id])[job_id]
            if not job.known or job.pending or job.running:  # else it has ended for certain
                return job_id
        launch = RecordedLaunch.read(run_dir)
        named = {"job_name": f"watch-{run_dir.run_id}", **parameters}
        job_id = submit_callable(
            WatcherJob(str(run_dir.root)),
            make_executor(folder, named, python=shlex.quote(sys.executable)),
            workdir=launch.workdir,
            environ=launch.environment(run_dir),
        )
        write_json_atomically(folder / "job.json", {"job_id": job_id, "sbatch": named})
        return job_id


@contextmanager
def _lock(path: Path) -> Iterator[None]:
    """One at a time, where the file system has locks: client and supervisor may both come."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        with suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def main(root: Path) -> int:
    """See that the run has a watcher's job; its words end in the watcher's log."""
    run_dir = RunDir(root)
    try:
        parameters = watcher_sbatch(load_resolved(run_dir.config, os.environ))
        print(f"watcher's job: {ensure_watcher_job(run_dir, parameters)}")  # noqa: T201
    except SubmitrainError as error:
        print(f"no watcher's job: {error}", file=sys.stderr)  # noqa: T201
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1])))
