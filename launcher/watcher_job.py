"""The watcher as a light Slurm job of its own (``monitor.autostart: job``).

``python -m launcher.watcher_job RUN`` submits it again where it has died; a supervisor does that
before its later attempts.
"""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.snapshot import python_path
from launcher.start import RecordedLaunch
from launcher.submit import job_environment, make_executor, submit_callable
from launcher.watcher_plan import watcher_sbatch
from monitor.slurm import query_jobs
from train.config.load import load_resolved
from train.errors import SubmitrainError
from train.rundir import RunDir, write_json_atomically

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FOLDER = "watcher"
"""Below ``submitit/``: pickles, scripts, logs, and ``job.json`` with the id."""


@dataclass(frozen=True)
class WatcherJob:
    """Watches the run in ``run_dir``; submitit requeues it at its time limit (``checkpoint``)."""

    run_dir: str

    def __call__(self) -> None:
        """Watch until the run has ended and everything is told."""
        from monitor.beside import watch_run

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
    with _alone(folder / "lock"):
        job_id = _noted(folder)
        if job_id and not _is_over(job_id):
            return job_id
        launch = RecordedLaunch.read(run_dir)
        path = python_path(
            run_dir,
            pinned=launch.pinned,
            workdir=launch.workdir,
            inherited=os.environ.get("PYTHONPATH", ""),
        )
        named = {"job_name": f"watch-{run_dir.run_id}", **parameters}
        job_id = submit_callable(
            WatcherJob(str(run_dir.root)),
            make_executor(folder, named, python=shlex.quote(sys.executable)),
            workdir=launch.workdir,
            environ=job_environment(os.environ, path),
        )
        write_json_atomically(folder / "job.json", {"job_id": job_id, "sbatch": named})
        return job_id


def _is_over(job_id: str) -> bool:
    """Whether a job has ended for certain; where nobody can be asked it is taken for alive."""
    job = query_jobs([job_id])[job_id]
    return job.known and not job.pending and not job.running


def _noted(folder: Path) -> str:
    try:
        return str(json.loads((folder / "job.json").read_text())["job_id"])
    except (OSError, ValueError, KeyError, TypeError):
        return ""


@contextmanager
def _alone(path: Path) -> Iterator[None]:
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
