"""A launch from its plan on: run folder, submission, and what a later submission needs to know.

Nothing half-made stays behind: a run folder is hidden until it is complete, and gone again when the
cluster refuses the job.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import structlog

from submitrain.config.placeholders import placeholder_names
from submitrain.errors import SubmitrainError, UserError
from submitrain.launcher.submit.audit_events import note_launch
from submitrain.launcher.submit.claims import (
    CLAIM_VARIABLE,
    Claim,
    claim_submission,
    note_submission,
)
from submitrain.launcher.submit.dependency import Predecessor, note_successor
from submitrain.launcher.submit.local import start_local
from submitrain.launcher.submit.record import Redactor, command_line, make_record, read_git
from submitrain.launcher.submit.snapshot import pin_own_package, take_snapshot
from submitrain.launcher.submit.submit import (
    Cluster,
    RecordedLaunch,
    SubmissionUnknownError,
    submit_slurm,
)
from submitrain.launcher.supervisor.watcher import ensure_watcher_job
from submitrain.run_folder import RunDir, write_json_atomically, write_text_atomically
from submitrain.train.faults import Fault, write_faults

if TYPE_CHECKING:
    from submitrain.launcher.plan.plan import Plan
    from submitrain.launcher.plan.prepare import Prepared

_HASH_LENGTH = 8
_WHY_NOT_WRITABLE = {
    errno.EEXIST: "a file of that name is in the way",
    errno.ENOTDIR: "a file is in the way",
    errno.EROFS: "the file system is read-only",
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
}

log = structlog.get_logger()


def start(prepared: Prepared, *, faults: Sequence[Fault] = ()) -> RunDir:
    """Make the run folder and submit the run; ``faults`` is for drills and tests.

    Raises:
        UserError: the folder cannot be written, or the cluster refuses the job.
        RunError: the job did not start.
        SubmissionUnknownError: it stayed open whether the job was taken; the folder is kept.
    """
    with folders_of(prepared.runs_dir):
        run_dir = make_folder(prepared, faults)
        try:
            _place_checkpoints(run_dir, prepared)
            with claim_submission(run_dir, "launch") as claim:
                submit(run_dir, prepared.cluster, prepared.plan, claim)
        except SubmissionUnknownError as error:
            note_launch(run_dir, "", error)
            raise
        except SubmitrainError:
            if run_dir.checkpoints.is_symlink():
                with suppress(OSError):
                    run_dir.checkpoints.resolve().rmdir()
            shutil.rmtree(run_dir.root, ignore_errors=True)
            raise
        note_launch(run_dir, str(claim.job_id))
        if (before := prepared.loaded.config.after) is not None:
            note_successor(Predecessor(Path(before)), run_dir)
    return run_dir


def submit(run_dir: RunDir, cluster: Cluster, plan: Plan, claim: Claim) -> None:
    """Submit a run folder and note the submission in it; used by launch and by resume.

    ``claim`` is the right to do so; the job carries its number.
    """
    record = RecordedLaunch.read(run_dir)
    pin_own_package(run_dir)
    environ = {**record.environment(run_dir), CLAIM_VARIABLE: str(claim.number)}
    before = run_dir.newest_attempt()
    if cluster.name == "local":
        job = start_local(run_dir, workdir=record.workdir, environ=environ)
    else:
        job_id = submit_slurm(run_dir, plan.sbatch, workdir=record.workdir, environ=environ)
        job = {"job_id": job_id, "sbatch": plan.sbatch}
    claim.job_id = str(job["job_id"])
    note_submission(run_dir, cluster.name, {"attempt": before, **job})
    if plan.watcher_sbatch is None:
        return
    try:
        ensure_watcher_job(run_dir, plan.watcher_sbatch)
    except (SubmitrainError, OSError) as error:  # the run is on its way, and goes on without one
        next_step = f"python -m monitor watch {run_dir.run_id}"
        log.warning("no_watcher", why=str(error), next_step=next_step)


@contextmanager
def folders_of(runs_dir: Path) -> Iterator[None]:
    """Make the runs folder; after an error take away what was made for it and is empty."""
    made = [path for path in (runs_dir, *runs_dir.parents) if not path.exists()]
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(_cannot_write(runs_dir, error)) from error
    try:
        yield
    except BaseException:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
        raise


def make_folder(prepared: Prepared, faults: Sequence[Fault] = ()) -> RunDir:
    """The run's folder with all that it holds before its first submission.

    Raises:
        UserError: it cannot be written.
    """
    runs_dir = prepared.runs_dir
    temporary = runs_dir / f".launching-{os.getpid()}-{time.monotonic_ns()}"
    try:
        temporary.mkdir()
        _fill(RunDir(temporary), prepared)
        if faults:
            write_faults(RunDir(temporary), faults)
        return _publish(temporary, prepared)
    except OSError as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise UserError(_cannot_write(runs_dir, error)) from error
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _fill(run_dir: RunDir, prepared: Prepared) -> None:
    """Write all that a run folder holds before its first submission."""
    loaded, workdir, slurm = prepared.loaded, prepared.workdir, prepared.loaded.config.slurm
    texts = [slurm.hf_token or "", slurm.wandb_key or ""]
    redactor = Redactor.of(os.environ, [name for text in texts for name in placeholder_names(text)])
    git_state = read_git(workdir)
    snapshot = take_snapshot(
        run_dir,
        workdir=workdir,
        runs_dir=prepared.runs_dir,
        git_state=git_state,
        redactor=redactor,
    )
    if snapshot.reason:
        log.warning("code_not_pinned", reason=snapshot.reason)
    path = str(loaded.path) if loaded.path else None
    facts = {
        "name": loaded.name,
        "config": {"path": path, "sha256": loaded.digest},
        "cluster": prepared.cluster.name,
        "cluster_reason": prepared.cluster.reason,
        "total_steps": prepared.plan.steps.total,
        "code": snapshot.as_json(),
    }
    record = make_record(
        redactor=redactor,
        git_state=git_state,
        workdir=workdir,
        command=command_line(),
        facts=facts,
    )
    write_text_atomically(run_dir.config, loaded.text)
    write_json_atomically(run_dir.record, record)
    for folder in (run_dir.submitit, run_dir.events_dir):
        folder.mkdir()


def _publish(temporary: Path, prepared: Prepared) -> RunDir:
    """Give the folder its name, ``<name>-<utc>-<hash8>``; a taken one waits for the next second."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", prepared.loaded.name).strip("-.") or "run"
    digest = prepared.loaded.digest[:_HASH_LENGTH]
    while True:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        target = prepared.runs_dir / f"{name}-{stamp}-{digest}"
        try:
            # rename(2) refuses a target that exists and is not empty; ours never are.
            temporary.rename(target)
        except OSError as error:
            if error.errno not in (errno.EEXIST, errno.ENOTEMPTY):
                raise
            time.sleep(0.1)
        else:
            return RunDir(target)


def _place_checkpoints(run_dir: RunDir, prepared: Prepared) -> None:
    """The folder for checkpoints, or a link to this run's own under ``checkpoint_dir``."""
    wanted = prepared.loaded.config.checkpoint.checkpoint_dir
    if wanted is None:
        run_dir.checkpoints.mkdir()
        return
    target = prepared.workdir / Path(wanted).expanduser() / run_dir.run_id
    try:
        target.mkdir(parents=True)
        run_dir.checkpoints.symlink_to(target)
    except OSError as error:
        raise UserError(
            f"checkpoint.checkpoint_dir: expected a folder that can be written, got {wanted} "
            f"({error.strerror}); name another one, or none for the run folder"
        ) from error


def _cannot_write(runs_dir: Path, error: OSError) -> str:
    reason = _WHY_NOT_WRITABLE.get(error.errno or 0, error.strerror or str(error))
    where = error.filename or runs_dir
    return (
        f"runs_dir: expected a folder that can be written, got {runs_dir}: {reason} ({where}); "
        "set runs_dir=/some/shared/folder"
    )
