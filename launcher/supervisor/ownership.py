"""Whether this supervisor still owns its run: asked before everything that it writes or requests.

A supervisor may be frozen at any instruction (its node was cut off, Slurm restarted the job
elsewhere) and go on much later. It owns the run for as long as the newest attempt is the one it
knows. The next attempt is claimed behind that one only, so it can never take the run back.

Outlasts a shared file system that fails for a while: an NFS failover, a full disk, a quota.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import structlog
import tenacity

from submitrain.attempts import Action, Cause, Decision, attempts_of_jobs, read_attempts
from submitrain.errors import FencedError
from submitrain.launcher.submit.claims import CLAIM_VARIABLE, read_claims, superseded
from submitrain.run_folder import RunDir

PATIENCE_S = 600.0
"""Seconds until an error of the file system is taken for final."""
PAUSE_S = 5.0

_T = TypeVar("_T")
log = structlog.get_logger(__name__)


def retry_on_oserror(
    call: Callable[[], _T], *, patience_s: float = PATIENCE_S, pause_s: float = PAUSE_S
) -> _T:
    """``call`` until it works; for what a supervisor cannot go on without.

    Raises:
        OSError: it still failed after ``patience_s`` seconds.
    """
    retrying = tenacity.Retrying(
        retry=tenacity.retry_if_exception_type(OSError),
        stop=tenacity.stop_after_delay(patience_s),
        wait=tenacity.wait_fixed(pause_s),
        before_sleep=_tell,
        reraise=True,
    )
    return retrying(call)


def _tell(state: tenacity.RetryCallState) -> None:
    error = state.outcome.exception() if state.outcome else None
    log.warning("run_folder_fails", error=str(error), tries=state.attempt_number)


@dataclass
class Ownership:
    """One supervisor's hold on a run; ``restarts`` is what the job had counted when it began."""

    run_dir: RunDir
    job_id: str
    restarts: int
    environ: Mapping[str, str] = field(default_factory=lambda: os.environ)
    newest: int = 0
    """Newest attempt that this supervisor knows, and from its first claim on its own."""
    claimed: bool = False

    def begin(self) -> Decision | None:
        """Look at the run before the first write; a decision when there is nothing to do.

        Raises:
            FencedError: the run is another supervisor's.
        """
        self.newest = self.run_dir.newest_attempt()
        if (ended := self._ended()) is not None:
            return ended
        number = self.environ.get(CLAIM_VARIABLE, "")
        reason = superseded(
            read_claims(self.run_dir),
            int(number) if number.isdigit() else None,
            attempts_of_jobs(read_attempts(self.run_dir), [self.job_id]),
            self.restarts,
        )
        if reason:
            raise FencedError(f"this supervisor of {self.run_dir.run_id} is superseded: {reason}")
        return None

    def claim(self) -> int:
        """Claim the next attempt.

        Raises:
            FencedError: another supervisor has claimed one meanwhile.
        """
        self.newest = retry_on_oserror(lambda: self.run_dir.claim_attempt(after=self.newest))
        self.claimed = True
        return self.newest

    def lost(self) -> bool:
        """Whether another supervisor has claimed an attempt."""
        return retry_on_oserror(self.run_dir.newest_attempt) > self.newest

    def check(self) -> None:
        """Refuse to go on.

        Raises:
            FencedError: another supervisor has claimed an attempt.
        """
        if self.lost():
            raise FencedError(
                f"attempt {self.run_dir.newest_attempt()} of another supervisor owns "
                f"{self.run_dir.run_id}; this one, with attempt {self.newest}, ends"
            )

    def _ended(self) -> Decision | None:
        """What ended the run for good: a job that Slurm restarts after that has nothing to do.

        A run that was only stopped goes on, and so does one that another job is to resume.
        """
        try:
            summary = json.loads(self.run_dir.summary.read_text())
        except (OSError, ValueError):
            return None
        if not isinstance(summary, dict):
            return None
        if summary.get("state") == "finished":
            return Decision(Cause.FINISHED, Action.DONE, "the run had finished already")
        mine = summary.get("job_id") == self.job_id
        if mine and summary.get("state") in ("failed", "cancelled"):
            cause = Cause(str(summary.get("cause")))
            return Decision(cause, Action.STOP, str(summary.get("explanation")))
        return None
