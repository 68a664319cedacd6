"""Gives the run another job: this one back in the queue, or a new one for the same run folder.

Back into the queue through submitit's own hook, once, and never against the user's will. submitit's
signal handler knows how to do it: call ``TrainingJob.checkpoint()``, store the returned
DelayedSubmission where the restarted job looks for it, requeue, exit. Three things differ here:

- ``scontrol requeue Incomplete <id>`` instead of the plain form, which can bring a job back to life
  that its user has cancelled;
- submitit's count of timeouts is left alone (it takes every run of a short job for one): budgets
  are ``decide``'s;
- exit only when Slurm itself ends the process, so that a job that is about to be requeued can never
  count as completed.

A new job is like ``resume``, but by the supervisor and with the recorded parameters: after a
preemption that cancels (PreemptMode=CANCEL), a job without ``--requeue``, or a site that forbids
it. Only where it is certain that Slurm does not bring the old job back.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from typing import Any, NoReturn

import structlog
from submitit.core.job_environment import SignalHandler
from submitit.core.utils import DelayedSubmission
from submitit.slurm.slurm import SlurmJobEnvironment

from submitrain.attempts import Action, Cause, Decision
from submitrain.errors import ClusterError
from submitrain.launcher.submit.claims import (
    CLAIM_VARIABLE,
    SUPERVISOR,
    claim_submission,
    note_submission,
    read_submissions,
    recorded_parameters,
)
from submitrain.launcher.submit.submit import RecordedLaunch, submit_slurm
from submitrain.launcher.supervisor.attempt import SignalNotes
from submitrain.run_folder import RunDir
from submitrain.slurm.client import Answer, requeue_job, scancel, show_job, update_job
from submitrain.slurm.jobs import JobInfo

ASK_AGAIN_S = 2.0
GIVE_UP_S = 1800.0
"""Seconds to go on asking a controller that does not answer; meanwhile it enforces no limit."""
END_WAIT_S = 60.0
"""Seconds to wait for Slurm to end this process after it took the job back."""
EXCLUDE_WAIT_S = 5.0
"""Seconds to go on asking for the exclusion: KillWait may be as short as 10 s."""
ASK_PAUSE_S = 0.3
EXIT_REQUEUED = 255

log = structlog.get_logger(__name__)


class Requeued(StrEnum):
    """What came of asking Slurm to take the job back."""

    ACCEPTED = "accepted"
    ALREADY = "already"
    """Slurm is requeueing the job by itself: nothing is left to do."""
    CANCELLED = "cancelled"
    REFUSED = "refused"
    OPEN = "open"
    """Nobody answered, or the answer had no effect yet: ask again."""


class RequeueRefusedError(Exception):
    """Slurm did not take the job back; says what it did instead."""

    def __init__(self, result: Requeued, words: str) -> None:
        super().__init__(words)
        self.result = result


def read_answer(answer: Answer, job: JobInfo, restarts_before: int) -> Requeued:
    """What ``scontrol requeue Incomplete`` and the job's state after it mean together.

    Its exit code alone means little: measured, it is 0 for a cancelled job too, without effect. A
    job that really goes back has one restart more at once.
    """
    if job.restarts > restarts_before or job.pending:
        return Requeued.ACCEPTED if answer.code == 0 else Requeued.ALREADY
    if job.state == "COMPLETING" and job.preempted_at:
        return Requeued.REFUSED  # PreemptMode=CANCEL: a requeue would count one restart more
    if job.state in ("COMPLETING", "CANCELLED"):
        return Requeued.REFUSED if job.reason == "TimeLimit" else Requeued.CANCELLED
    if not job.known or answer.code in (0, None) or answer.code < 0:
        # No answer (or a signal ended scontrol with the rest of the job), or no effect yet.
        return Requeued.OPEN
    return Requeued.REFUSED


def ask_slurm(job_id: str, restarts_before: int) -> tuple[Requeued, str]:
    """``scontrol requeue Incomplete``, again while nothing is certain."""
    give_up_at = time.monotonic() + GIVE_UP_S
    while True:
        if show_job(job_id).restarts > restarts_before:
            # Also after this process was frozen: the job may run again elsewhere.
            return Requeued.ALREADY, ""
        answer = requeue_job(job_id)
        job = show_job(job_id)
        result = read_answer(answer, job, restarts_before)
        if result is not Requeued.OPEN or time.monotonic() > give_up_at:
            return result, answer.error
        log.warning("requeue_again", why=answer.error or job.reason)
        time.sleep(ASK_AGAIN_S)


def _exclude_nodes(job_id: str, nodes: Sequence[str]) -> None:
    """Set the nodes that a requeued job shall not get, and see that Slurm's list is that one.

    Measured: a job that was just taken back counts as pending, although its processes have KillWait
    left, so its owner may change ExcNodeList from inside; while it runs that is refused.
    """
    give_up_at = time.monotonic() + EXCLUDE_WAIT_S
    while True:
        now = show_job(job_id)
        if set(now.excluded) == set(nodes):
            return
        if time.monotonic() > give_up_at:
            log.warning("not_excluded", job_id=job_id, nodes=list(nodes), now=list(now.excluded))
            return
        change = f"ExcNodeList={','.join(nodes)}"
        answer = update_job(job_id, change)
        log.info("exclude", job_id=job_id, nodes=list(nodes), slurm=answer.error or "done")
        if answer.code != 0:
            time.sleep(ASK_PAUSE_S)


class GuardedSlurmEnvironment(SlurmJobEnvironment):  # type: ignore[misc]
    """submitit's view of the job, with a requeue that respects a cancellation."""

    restarts_before: int = 0  # set after construction: submitit's __new__ takes no arguments
    exclude: tuple[str, ...] = ()

    @classmethod
    def name(cls) -> str:
        """submitit derives the cluster's name from the class's."""
        return "slurm"

    def _requeue(self, countdown: int) -> None:
        result, words = ask_slurm(self.job_id, self.restarts_before)
        log.info("requeue", job_id=self.job_id, result=str(result), slurm=words)
        if result not in (Requeued.ACCEPTED, Requeued.ALREADY):
            raise RequeueRefusedError(result, words)
        _exclude_nodes(self.job_id, self.exclude)


class RequeueHandler(SignalHandler):  # type: ignore[misc]
    """submitit's own way back into the queue, called by the supervisor instead of by a signal."""

    def __init__(
        self,
        environment: SlurmJobEnvironment,
        delayed: DelayedSubmission,
        ended: Callable[[], bool],
    ) -> None:
        super().__init__(environment, environment.paths, delayed)
        self._ended = ended

    def has_timed_out(self) -> bool:
        """Never: budgets are ours, see the module's docstring."""
        return False

    def _exit(self) -> NoReturn:
        deadline = time.monotonic() + END_WAIT_S
        while not self._ended() and time.monotonic() < deadline:
            time.sleep(0.1)
        sys.exit(EXIT_REQUEUED)


def requeue_with_submitit(
    job_id: str, restarts_before: int, signals: SignalNotes, exclude: tuple[str, ...]
) -> Decision:
    """Requeue this job and end this process; returns only when Slurm did not take it back."""
    environment = GuardedSlurmEnvironment()
    environment.restarts_before, environment.exclude = restarts_before, exclude
    paths = environment.paths
    # A leftover of a killed predecessor makes submitit's atomic save assert.
    paths.submitted_pickle.with_suffix(".pkl.save_tmp").unlink(missing_ok=True)
    try:
        delayed = DelayedSubmission.load(paths.submitted_pickle)
        handler = RequeueHandler(environment, delayed, lambda: signals.terminated)
        handler.checkpoint_and_try_requeue(signal.SIGUSR2)
    except RequeueRefusedError as error:
        if error.result is Requeued.CANCELLED:
            return Decision(Cause.CANCELLED, Action.STOP, f"scancel ended job {job_id}")
        # Without an answer the job may come back all the same, and a second one must not.
        action = Action.RESUBMIT if error.result is Requeued.REFUSED else Action.STOP
        return Decision(Cause.TIME_LIMIT, action, f"Slurm did not requeue job {job_id}: {error}")
    except (OSError, subprocess.SubprocessError) as error:
        return Decision(Cause.TIME_LIMIT, Action.STOP, f"job {job_id} was not requeued: {error}")
    raise AssertionError("submitit's handler exits or raises")


ONLY_ONCE = ("dependency",)
"""Parameters that were meant for the first job: what it depended on has ended long ago."""
ONLY_ONCE_ADDITIONAL = ("begin", "hold")


def resubmit(
    run_dir: RunDir, job_id: str, exclude: Sequence[str], *, dependency: str | None = None
) -> str:
    """Submit the run again without the nodes in ``exclude``; returns the new job's id.

    ``dependency`` is what the new job waits for (``launcher.submit.dependency``).

    Raises:
        SubmitrainError: no parameters were recorded, Slurm refuses the job, or a client is
            submitting this run right now.
    """
    launch = RecordedLaunch.read(run_dir)
    parameters = recorded_parameters(read_submissions(run_dir))
    if parameters is None:
        raise ClusterError(
            f"{run_dir.submissions}: expected the parameters of an earlier submission, got none"
        )
    again = without_once(parameters)
    if dependency is not None:
        again["dependency"] = dependency
    with claim_submission(run_dir, f"the supervisor of job {job_id}") as claim:
        environ = {**launch.environment(run_dir), CLAIM_VARIABLE: str(claim.number)}
        claim.job_id = new_id = submit_slurm(
            run_dir, with_exclusion(again, exclude), workdir=launch.workdir, environ=environ
        )
    line = {
        "job_id": new_id,
        "attempt": run_dir.newest_attempt(),
        # Without the exclusion: strikes expire, and each new job has a list of its own.
        "sbatch": again,
        "via": SUPERVISOR,
        "after": job_id,
        "excluded": list(exclude),
    }
    note_submission(run_dir, "slurm", line)
    if run_dir.cancel_request.exists():
        # The user cancelled while sbatch ran, and saw only the old job.
        scancel(new_id)
    return new_id


def without_once(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters less those that only made sense for the first submission."""
    kept = {key: value for key, value in parameters.items() if key not in ONLY_ONCE}
    more = kept.get("additional_parameters")
    if isinstance(more, Mapping):
        more = {key: value for key, value in more.items() if key not in ONLY_ONCE_ADDITIONAL}
        kept["additional_parameters"] = more
    return kept


def with_exclusion(parameters: Mapping[str, Any], exclude: Sequence[str]) -> dict[str, Any]:
    """The parameters with further nodes on ``--exclude``."""
    if not exclude:
        return dict(parameters)
    users = [str(parameters["exclude"])] if parameters.get("exclude") else []
    return {**parameters, "exclude": ",".join([*users, *exclude])}
