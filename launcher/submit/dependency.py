"""Runs that begin when another run has finished: ``after``.

Slurm's dependencies know jobs; a run may go on in others (``launcher.supervisor.requeue``). So
three things hold a chain together: the successor's job depends on the newest job of the run before
it; when that run continues in a new job, its supervisor moves the dependency; and the successor's
supervisor looks at the run itself before it starts anything, and goes back behind its job if it
still has one.

Also how the job of a submission is cancelled, or told to end.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog

from submitrain.attempts import RESUME_HINT, Action, Cause, Decision
from submitrain.config.job import ResilienceConfig
from submitrain.errors import ClusterError, UserError
from submitrain.launcher.submit.claims import read_submissions, recorded_parameters
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.launcher.supervisor.decide import decide
from submitrain.launcher.supervisor.evidence import AttemptEvidence
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.slurm.client import scancel, show_job, update_job
from submitrain.status import RunState, RunStatus, read_statuses

SCANCEL_TIMEOUT_S = 60.0
POLL_S = {"local": 1.0, "slurm": 5.0}
"""Seconds between polls of the run before."""
SETTLE_S = 60.0
"""Seconds that nodes are kept while the run before is just ending."""
GO_ON = "resume that run, and this one (`python -m launcher resume`) when it has finished"

log = structlog.get_logger(__name__)


def cancel_job(submission: Mapping[str, Any]) -> None:
    """Cancel the job of a submission for good.

    Raises:
        ClusterError: the scheduler, or the job's host, cannot be asked from here.
    """
    _end_job(submission)


def terminate_job(submission: Mapping[str, Any]) -> None:
    """Send TERM to supervisor and ranks, as a shutdown would; raises like ``cancel_job``."""
    _end_job(submission, "--signal=TERM", "--full")


def _end_job(submission: Mapping[str, Any], *flags: str) -> None:
    if submission.get("cluster") == "slurm":
        arguments = [*flags, str(submission["job_id"])]
        answer = scancel(*arguments, timeout_s=SCANCEL_TIMEOUT_S)
        if answer.code != 0:
            raise ClusterError(
                f"cancel: scancel {' '.join(arguments)} failed: {answer.error or 'no answer'}; "
                "try again when the scheduler answers"
            )
        return
    process = ProcessRef.from_json(submission.get("process"))
    if process is None:
        raise ClusterError("cancel: no process was recorded for this run")
    if process.alive() is None:
        raise ClusterError(f"cancel: the run is on {process.host}; cancel it there")
    process.send_signal(signal.SIGTERM)


@dataclass(frozen=True)
class Predecessor:
    """The run that has to finish first."""

    folder: Path

    @property
    def run_dir(self) -> RunDir:
        """Its folder."""
        return RunDir(self.folder)

    def status(self) -> RunStatus:
        """How it is doing, asked anew."""
        return read_statuses([self.folder])[0]

    def newest_job(self) -> str | None:
        """Its newest job on Slurm; None if it has none."""
        lines = read_submissions(self.run_dir)
        return str(lines[-1]["job_id"]) if lines and lines[-1].get("cluster") == "slurm" else None

    def dependency(self) -> str | None:
        """sbatch's words for waiting behind its newest job.

        The end decides nothing (``afterok``), since the run may go on in another job.
        """
        job_id = self.newest_job()
        return None if job_id is None else after_job(job_id)


def dependency_on(before: Predecessor, cluster: str) -> str | None:
    """What a job that is submitted now has to wait for; None where there is nothing to wait for.

    Raises:
        UserError: the run before cannot finish any more, or not where this one could wait for it.
    """
    status = before.status()
    if status.state is RunState.FINISHED:
        return None
    if (why := never_finishes(status)) is not None:
        raise UserError(f"after: {status.run_id} {why}; resume it, or wait for another run")
    if cluster == "local":
        return None
    dependency = before.dependency()
    if dependency is None:
        raise UserError(
            f"after: {status.run_id} runs on one machine without Slurm, and a job would hold its "
            "nodes while it waits for that; use --cluster local, or launch when it has finished"
        )
    return dependency


def after_job(job_id: str) -> str:
    """sbatch's dependency on the end of a job, however it ends."""
    return f"afterany:{job_id}"


def never_finishes(status: RunStatus) -> str | None:
    """Why a run will not finish by itself; None while it may."""
    if not status.state.ended or status.state is RunState.FINISHED:
        return None
    return without_hint(f"{status.state}: {status.why}" if status.why else str(status.state))


def without_hint(why: str) -> str:
    """Why a run did not finish, without what to do: along a chain it is said once."""
    return why.replace(f"; {GO_ON}", "").replace(f"; {RESUME_HINT}", "")


@dataclass
class DependencyWait:
    """A successor's supervisor finds out whether it may begin."""

    before: Predecessor
    has_queue: bool
    asked_to_leave: Callable[[], bool]
    """Whether the user or the scheduler wants this supervisor to end."""
    settle_s: float = SETTLE_S

    def wait(self) -> Decision | None:
        """None when the run before has finished; else what to do instead of training.

        On Slurm the job waits in the queue and not here, where it holds nodes; a local run has no
        queue and waits here.
        """
        if not self.before.run_dir.record.exists():
            text = f"after: there is no run in {self.before.folder} any more"
            return Decision(Cause.PREDECESSOR, Action.STOP, text)
        began, doubted = time.monotonic(), False
        while True:
            status = self.before.status()
            if status.state is RunState.FINISHED:
                return None
            why = never_finishes(status)
            # Without its last word it may just be between two jobs: look twice.
            if why is not None and (doubted or self.before.run_dir.summary.exists()):
                text = f"not started: the run before it, {status.run_id}, {why}; {GO_ON}"
                return Decision(Cause.PREDECESSOR, Action.STOP, text)
            doubted = why is not None
            if self.asked_to_leave():
                return Decision(Cause.TERMINATED, Action.STOP, "asked to leave while it waited")
            if self.has_queue and not doubted and (job_id := self.before.newest_job()):
                # A job that is just ending is none to wait behind.
                job, waited_s = show_job(job_id), time.monotonic() - began
                if job.running or job.pending or (job.known and waited_s > self.settle_s):
                    text = f"the run before it, {status.run_id}, still runs ({status.state})"
                    return Decision(Cause.PREDECESSOR, Action.RESUBMIT, text)
            time.sleep(POLL_S["slurm" if self.has_queue else "local"])


def ended_while_waiting(allocation: Allocation, limits: ResilienceConfig) -> Decision:
    """What follows a TERM before the run could begin: by who sent it, as after any attempt."""
    evidence = AttemptEvidence(
        attempt=0,
        world_size=allocation.spawner.world_size,
        terminated=True,
        job=allocation.job(),
        has_queue=allocation.has_queue,
        restarts_before=allocation.restarts,
        remaining_s=allocation.ends_at() - time.time(),
    )
    return decide(evidence, (), None, limits)


def note_successor(before: Predecessor, run_dir: RunDir) -> None:
    """Tell the run before who waits for it; it can go without, so an error is only logged."""
    folder = before.run_dir.successors
    try:
        folder.mkdir(exist_ok=True)
        write_json_atomically(folder / f"{run_dir.run_id}.json", {"folder": str(run_dir.root)})
    except OSError as error:
        log.warning("successor_not_noted", why=str(error))


def waiting_jobs(run_dir: RunDir) -> dict[Path, str]:
    """Folders and newest Slurm jobs of the runs that wait for this one and never began.

    One that cannot be read is left out: it will look at this run itself.
    """
    found = {}
    for path in sorted(run_dir.successors.glob("*.json")):
        try:
            one = Predecessor(Path(json.loads(path.read_text())["folder"]))
            job_id = one.newest_job() if one.run_dir.newest_attempt() == 0 else None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("successor_unreadable", path=str(path), why=str(error))
            continue
        if job_id is not None:
            found[one.folder] = job_id
    return found


def move_successors(run_dir: RunDir, new_job: str) -> None:
    """Let those who wait wait for ``new_job`` instead; who has begun meanwhile looks by itself."""
    ours = {after_job(str(line.get("job_id"))) for line in read_submissions(run_dir)}
    for folder, job_id in waiting_jobs(run_dir).items():
        given = (recorded_parameters(read_submissions(RunDir(folder))) or {}).get("dependency")
        kept = [one for one in str(given or "").split(",") if one and one not in ours]
        change = f"Dependency={','.join([*kept, after_job(new_job)])}"
        answer = update_job(job_id, change)
        log.info("successor", run=folder.name, job_id=job_id, waits_for=new_job, code=answer.code)


def end_successors(run_dir: RunDir, why: str) -> None:
    """This run will not finish: those who wait for it end now, and not when nodes are free."""
    for folder, job_id in waiting_jobs(run_dir).items():
        scancel("--state=PENDING", job_id)
        successor = RunDir(folder)
        if successor.newest_attempt() or successor.summary.exists():
            continue
        text = f"not started: the run before it, {run_dir.run_id}, {without_hint(why)}"
        summary = {
            "state": "failed",
            "cause": str(Cause.PREDECESSOR),
            "explanation": f"{text}; {GO_ON}",
            "step": None,
            "attempts": 0,
            "ended_at": round(time.time(), 3),
        }
        try:
            write_json_atomically(successor.summary, summary)
        except OSError as error:  # its own supervisor would say the same
            log.warning("successor_not_told", run=folder.name, why=str(error))
            continue
        log.warning("successor_ended", run=folder.name, job_id=job_id)
        end_successors(successor, f"failed: {text}")
