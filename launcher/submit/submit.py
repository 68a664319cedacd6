"""Hands a prepared run folder to a cluster: the only client module that imports submitit.

What is submitted is ``TrainingJob(run folder)``, or the job of its watcher: a small importable
object that holds a path and nothing else, so that the pickle is the same however often Slurm
restarts it.
"""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import structlog
import tenacity

from submitrain.errors import ClusterError, RunError, UserError
from submitrain.launcher.plan.sbatch import job_python
from submitrain.launcher.submit.snapshot import python_path
from submitrain.run_folder import RunDir
from submitrain.slurm.client import find_script, ping

if TYPE_CHECKING:
    from submitit import SlurmExecutor


log = structlog.get_logger()

ClusterName = Literal["local", "slurm"]
PING_TIMEOUT_S = 5.0
SBATCH_TIMEOUT_S = 60
LOOKUP_TIMEOUT_S = 30.0
LOOKUP_WAIT_S = 3.0
SUBMIT_TRIES = 3
NO_LIMIT = 10**6
_INHERITED = re.compile(
    r"^(SLURM|SLURMD|SBATCH|SRUN|SUBMITIT|PMI|PMIX)_"
    r"|^SUBMITRAIN_(RUN_DIR|ATTEMPT|JOB_ID|PARENT_PID|RANK|WORLD_SIZE|LOCAL_.*|SUBMISSION)$"
)
"""Variables of a surrounding job or rank that would confuse the new one."""
_KEPT = frozenset({"SLURM_CONF"})
_UNCERTAIN = re.compile(
    r"socket timed out|unable to contact|communication|connection|timed out|zero bytes|"
    r"temporarily unavailable|try again",
    re.IGNORECASE,
)
"""sbatch's complaints after which it is open whether the controller took the job."""


class SubmissionUnknownError(RunError):
    """Slurm may or may not have taken the job."""


@dataclass(frozen=True)
class Cluster:
    """Where a run goes, and why it goes there."""

    name: ClusterName
    reason: str


def choose_cluster(wanted: str) -> Cluster:
    """``auto`` becomes Slurm where a controller answers, this machine where there is no Slurm.

    A Slurm that is configured but does not answer is an error, not a reason to train on what may
    be a login node.

    Raises:
        ClusterError: Slurm was asked for, or is configured here, and does not answer.
    """
    if wanted == "local":
        return Cluster("local", "asked for")
    if wanted not in ("auto", "slurm"):
        raise ClusterError(f"cluster: expected auto, local or slurm, got {wanted!r}")
    if shutil.which("sbatch") is None:
        missing = "no sbatch on this machine"
    elif problem := slurm_problem():
        configured = slurm_is_configured()
        missing = problem if configured else "Slurm is installed here and not configured"
        if wanted == "auto" and configured:
            raise ClusterError(
                f"cluster: Slurm is configured here but {problem}; try again, or train on this "
                "machine with --cluster local"
            )
    else:
        return Cluster("slurm", "asked for" if wanted == "slurm" else "its controller answers")
    if wanted == "slurm":
        raise ClusterError(
            f"cluster: slurm was asked for, but {missing}; run this on a login node of the cluster "
            "(with SLURM_CONF set where it needs one), or use --cluster local"
        )
    return Cluster("local", missing)


def slurm_problem() -> str | None:
    """Why Slurm cannot be used from here; None when its controller answers."""
    answer = ping(timeout_s=PING_TIMEOUT_S)
    if answer.code == 0 and " UP" in answer.out:
        return None
    if shutil.which("scontrol") is None:
        return "scontrol is not on this machine"
    if answer.code is None:
        return f"its controller did not answer within {PING_TIMEOUT_S:.0f} s"
    said = (answer.error or answer.out).strip().splitlines()
    return f"its controller does not answer ({said[-1].strip() if said else 'no output'})"


def slurm_is_configured() -> bool:
    """Whether this machine has a slurm.conf."""
    return Path(os.environ.get("SLURM_CONF") or "/etc/slurm/slurm.conf").exists()


def job_environment(environ: Mapping[str, str], python_path: str) -> dict[str, str]:
    """Environment for a job: nothing of a surrounding job, our packages safe from shadowing."""
    clean = {
        name: value
        for name, value in environ.items()
        if name in _KEPT or not _INHERITED.match(name)
    }
    return {**clean, "PYTHONPATH": python_path, "PYTHONSAFEPATH": "1"}


@dataclass(frozen=True)
class RecordedLaunch:
    """What a later submission needs to know of the launch."""

    workdir: Path
    pinned: bool
    cluster: str

    @classmethod
    def read(cls, run_dir: RunDir) -> RecordedLaunch:
        """Read it from ``record.json``.

        Raises:
            UserError: there is none, or it is not one of ours.
        """
        try:
            record = json.loads(run_dir.record.read_text())
            return cls(Path(record["workdir"]), record["code"]["pinned"], record["cluster"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(
                f"{run_dir.record}: expected the record of a launch, got none"
            ) from error

    def environment(self, run_dir: RunDir) -> dict[str, str]:
        """Environment of a job that runs the pinned code, as this process's own allows."""
        inherited = os.environ.get("PYTHONPATH", "")
        path = python_path(run_dir, pinned=self.pinned, workdir=self.workdir, inherited=inherited)
        return job_environment(os.environ, path)


def submit_slurm(
    run_dir: RunDir,
    parameters: Mapping[str, Any],
    *,
    workdir: Path,
    environ: Mapping[str, str],
) -> str:
    """Submit the training with sbatch; returns the job id; raises like ``submit_callable``."""
    # Late, since a job submits its successor by this very module.
    from submitrain.launcher.supervisor.job import TrainingJob

    return submit_callable(
        TrainingJob(str(run_dir.root)),
        make_executor(run_dir.submitit, parameters, python=job_python()),
        workdir=workdir,
        environ=environ,
    )


def submit_callable(
    job: Callable[[], Any], executor: SlurmExecutor, *, workdir: Path, environ: Mapping[str, str]
) -> str:
    """Submit what submitit shall call; returns the job id.

    Raises:
        ClusterError: sbatch refused the job; nothing was submitted.
        SubmissionUnknownError: it stayed open whether Slurm took the job.
    """
    with _process_state(environ, workdir):
        try:
            return _submit_once_accepted(job, executor)
        except tenacity.RetryError as error:
            raise ClusterError(
                f"slurm: the job was not taken: {error.last_attempt.exception()}"
            ) from error


def make_executor(folder: Path, parameters: Mapping[str, Any], *, python: str) -> SlurmExecutor:
    """submitit's executor for a folder; sbatch itself gets a time limit, which it has not.

    Raises:
        ClusterError: submitit does not know a parameter.
    """
    from submitit import SlurmExecutor

    class TimedSlurmExecutor(SlurmExecutor):  # type: ignore[misc]
        """sbatch retries for minutes when the controller is away; stop it earlier."""

        def _make_submission_command(self, submission_file_path: Path) -> list[str]:
            limit = ["timeout", "--kill-after=5", str(SBATCH_TIMEOUT_S)]
            return [*limit, *super()._make_submission_command(submission_file_path)]

        def _num_tasks(self) -> int:
            return 1  # the pickle runs once; submitit would multiply a range of nodes ("2-4")

    # Budgets are ours: submitit would bring a job back three times only.
    executor = TimedSlurmExecutor(folder=folder, python=python, max_num_timeout=NO_LIMIT)
    try:
        executor.update_parameters(**parameters)
    except (TypeError, ValueError) as error:
        raise ClusterError(f"slurm: {str(error).splitlines()[0]}") from error
    return executor


class _NotTakenError(Exception):
    """sbatch failed for a passing reason, and Slurm certainly has no such job."""


@tenacity.retry(
    retry=tenacity.retry_if_exception_type(_NotTakenError),
    stop=tenacity.stop_after_attempt(SUBMIT_TRIES),
    wait=tenacity.wait_exponential(multiplier=2, max=20),
)
def _submit_once_accepted(job: Callable[[], Any], executor: SlurmExecutor) -> str:
    """Submit; adopt the job if Slurm took it all the same; else refuse, or have it tried again."""
    from submitit.core.utils import FailedJobError, FailedSubmissionError

    folder = Path(executor.folder)
    before = _leftovers(folder)
    try:
        # submitit also prints what sbatch said; it is in the error, and said once by us.
        with redirect_stderr(io.StringIO()):
            return str(executor.submit(job).job_id)
    except (FailedJobError, FailedSubmissionError) as error:
        complaint = _complaint(error)
    leftovers = [path for path in _leftovers(folder) if path not in before]
    refused = bool(complaint) and not _UNCERTAIN.search(complaint)
    job_id = None if refused else _find_job(leftovers)
    if job_id is not None:
        log.warning("sbatch_failed_but_job_exists", job_id=job_id, complaint=complaint)
        _adopt(folder, job_id, leftovers)
        return job_id
    for path in leftovers:
        path.unlink(missing_ok=True)
    if refused:
        raise ClusterError(f"slurm: sbatch refused the job: {complaint}")
    raise _NotTakenError(complaint or f"sbatch did not answer within {SBATCH_TIMEOUT_S} s")


def _complaint(error: Exception) -> str:
    """sbatch's last own words, without its prefixes; empty where it was stopped for its time."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sbatchs = [re.sub(r"^sbatch: (error: )?", "", line) for line in lines if "sbatch:" in line]
    told = sbatchs or lines
    return re.sub(r"^Batch job submission failed: ", "", told[-1]) if told else ""


def _leftovers(folder: Path) -> list[Path]:
    """submitit's files that have no job id yet: pickle and script of an unfinished submission."""
    scripts = [path for path in folder.glob(".submission_file_*.sh") if not path.is_symlink()]
    pickles = [path for path in folder.glob("*.pkl") if re.fullmatch(r"[0-9a-f]{32}", path.stem)]
    return scripts + pickles


def _find_job(leftovers: list[Path]) -> str | None:
    """Id of the job that runs one of these batch scripts: their names are unique.

    Raises:
        SubmissionUnknownError: the scheduler does not answer either.
    """
    scripts = {str(path) for path in leftovers if path.suffix == ".sh"}
    for again in reversed(range(SUBMIT_TRIES)):
        job_id, problem = find_script(scripts, timeout_s=LOOKUP_TIMEOUT_S)
        if not problem:
            return job_id or None
        if again:
            time.sleep(LOOKUP_WAIT_S)
    raise SubmissionUnknownError(
        f"slurm: sbatch failed and the scheduler does not answer ({problem}), so the job may or "
        "may not have been taken; look with `squeue --me` before you launch again"
    )


def _adopt(folder: Path, job_id: str, leftovers: list[Path]) -> None:
    """Give pickle and script the names that submitit's job process looks for."""
    from submitit.core.utils import JobPaths

    paths = JobPaths(folder, job_id)
    for path in leftovers:
        if path.suffix == ".sh":
            paths.move_temporary_file(path, "submission_file", keep_as_symlink=True)
        else:
            paths.move_temporary_file(path, "submitted_pickle")


@contextmanager
def _process_state(environ: Mapping[str, str], workdir: Path) -> Iterator[None]:
    """Run sbatch with this environment and working directory: submitit inherits both.

    ``--export=ALL`` is sbatch's default, so this is how secrets reach the job: never by a file.
    """
    saved, here = dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(environ)
    try:
        os.chdir(workdir)
        yield
    finally:
        os.environ.clear()
        os.environ.update(saved)
        os.chdir(here)
