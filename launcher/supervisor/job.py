"""The job: what submitit pickles and runs, once per job, as the supervisor of one run.

The pickle holds a path and nothing else, so that a job which Slurm restarts by itself (with the
original pickle) does the same as one that requeued itself.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import structlog
from submitit.core.job_environment import JobEnvironment
from submitit.helpers import DelayedSubmission

from submitrain.attempts import Action, Cause, Decision
from submitrain.config.resolve import load_resolved
from submitrain.errors import RunError, UserError
from submitrain.events import EXIT_FENCED
from submitrain.launcher.submit.claims import adopt
from submitrain.launcher.supervisor.allocation import allocation_of
from submitrain.launcher.supervisor.attempt import SignalNotes
from submitrain.launcher.supervisor.requeue import requeue_with_submitit, resubmit
from submitrain.launcher.supervisor.supervise import Supervisor
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.signals import tolerate_log_write_errors
from submitrain.train.context import leave

EXIT_LEFT = 143
"""Exit code where Slurm requeues the job, or a new one goes on: neither success nor failure."""


@dataclass(frozen=True)
class TrainingJob:
    """Supervises the run in ``run_dir``; picklable by reference, light to import."""

    run_dir: str

    def __call__(self) -> dict[str, Any]:
        """Run to the end; returns ``summary.json``'s content when the run has finished.

        Raises:
            RunError: the run ended in another way; the message says how, and what to do.
            SystemExit: Slurm takes the job back; there is no result yet.
        """
        tolerate_log_write_errors()
        configure_log()
        signals = SignalNotes()
        signals.install()
        run_dir = RunDir(Path(self.run_dir))
        decision = self._supervise(run_dir, signals)
        if decision.action in (Action.LEAVE, Action.RESUBMIT):
            sys.exit(EXIT_LEFT)
        if decision.cause is Cause.FENCED:
            leave(EXIT_FENCED)  # submitit would write a result over that of the job's successor
        if decision.action is not Action.DONE:
            raise RunError(f"{decision.state}: {decision.explanation}")
        summary: dict[str, Any] = json.loads(run_dir.summary.read_text())
        return summary

    def checkpoint(self) -> DelayedSubmission:
        """submitit's requeue hook: the same job again; where it goes on is in the run folder."""
        return DelayedSubmission(self)

    def _supervise(self, run_dir: RunDir, signals: SignalNotes) -> Decision:
        supervisor: Supervisor | None = None
        try:
            config = load_resolved(run_dir.config, os.environ)
            allocation = allocation_of(run_dir, config, os.environ)
            if "SUBMITIT_FOLDER" in os.environ:
                # By an earlier attempt's result submitit would take the running job for done.
                JobEnvironment().paths.result_pickle.unlink(missing_ok=True)
            job_id, restarts = allocation.job_id, allocation.restarts
            if allocation.has_queue:
                adopt(run_dir, job_id)
            requeue = functools.partial(requeue_with_submitit, job_id, restarts, signals)
            again = functools.partial(resubmit, run_dir, job_id)
            supervisor = Supervisor(run_dir, config, allocation, signals, requeue, again)
            return supervisor.run()
        except Exception as error:
            # Whatever went wrong: a run without a summary looks as if it were still going.
            if supervisor is None or not supervisor.ownership.lost():
                with suppress(OSError):  # the first error says more than a second one
                    write_json_atomically(run_dir.summary, supervisor_failed(error, run_dir))
            raise


def supervisor_failed(error: Exception, run_dir: RunDir) -> dict[str, Any]:
    """``summary.json`` where the supervisor itself could not start, or not go on."""
    users = isinstance(error, UserError)
    return {
        "state": "failed",
        "cause": str(Cause.USER_ERROR if users else Cause.SUPERVISOR_ERROR),
        "explanation": f"the supervisor failed: {type(error).__name__}: {error}",
        "step": None,
        "attempts": run_dir.newest_attempt(),
        "ended_at": round(time.time(), 3),
    }


def configure_log() -> None:
    """Plain readable lines on standard output, which ends in submitit's log of the job."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%d %H:%M:%S", utc=True),
            structlog.dev.ConsoleRenderer(colors=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stdout),
        cache_logger_on_first_use=False,
    )
