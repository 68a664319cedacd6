"""Keeps one run alive within one job: attempt after attempt, until it is done or cannot go on here.

    claim the attempt → choose its nodes → preflight (a job's first) → start the ranks → watch them
    → gather the evidence → decide → record → carry it out

The ranks are watched in ``attempt``, the evidence is ``evidence``, the decision ``decide``. Runs as
the batch job's own process (or a local one). Needs no torch.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import structlog

from submitrain.attempts import (
    Action,
    Attempt,
    AttemptWriter,
    Cause,
    Decision,
    attempts_of_jobs,
    read_attempts,
)
from submitrain.config import RunConfig
from submitrain.errors import FencedError, SubmitrainError
from submitrain.launcher.checks.preflight import Preflight, throttled
from submitrain.launcher.submit.audit_events import SupervisorAudit
from submitrain.launcher.submit.claims import chain_of, read_submissions
from submitrain.launcher.submit.dependency import (
    DependencyWait,
    Predecessor,
    end_successors,
    ended_while_waiting,
    move_successors,
)
from submitrain.launcher.submit.submit import SubmissionUnknownError
from submitrain.launcher.supervisor.after_run import follow_up
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.launcher.supervisor.attempt import AttemptWatch, SignalNotes, log_tail
from submitrain.launcher.supervisor.decide import (
    after_failed_resubmission,
    after_failed_rollback,
    after_lost_supervisors,
    after_refused_requeue,
    attempts_without_progress,
    decide,
)
from submitrain.launcher.supervisor.evidence import AttemptEvidence
from submitrain.launcher.supervisor.guard import Guard
from submitrain.launcher.supervisor.nodes import NodeSelector
from submitrain.launcher.supervisor.ownership import Ownership, retry_on_oserror
from submitrain.launcher.supervisor.watcher import RunWatcher
from submitrain.monitor.accounting.goodput import read_goodput
from submitrain.rollbacks import record_rollback
from submitrain.run_folder import RunDir, write_json_atomically

RESTART_PAUSES_S = (0.1, 1.0, 5.0)
"""Seconds before the next attempt, by attempts in a row without a new step; the last one stays."""

log = structlog.get_logger(__name__)

Requeue = Callable[[tuple[str, ...]], Decision]
"""Puts this job back into the queue, without some nodes; returns only when that did not happen."""


class Resubmit(Protocol):
    """Submits a new job for this run, without some nodes; returns its id."""

    def __call__(self, exclude: tuple[str, ...], *, dependency: str | None = None) -> str: ...


@dataclass
class Supervisor:
    """One run in one job."""

    run_dir: RunDir
    config: RunConfig
    allocation: Allocation
    signals: SignalNotes
    requeue: Requeue
    resubmit: Resubmit

    def __post_init__(self) -> None:
        job_id, restarts = self.allocation.job_id, self.allocation.restarts
        self.attempts = AttemptWriter(self.run_dir, job_id)
        self.ownership = Ownership(self.run_dir, job_id, restarts)
        self.nodes = NodeSelector(self.run_dir, self.config, self.allocation)
        self.audit = SupervisorAudit(self.run_dir, job_id)
        on_slurm = self.allocation.has_queue
        self.watcher = RunWatcher.of(self.run_dir, self.config, on_slurm=on_slurm)
        self.guard = Guard(self.run_dir, job_id, restarts) if on_slurm else None
        self._submission_unknown = False

    def run(self) -> Decision:
        """Attempt after attempt; returns the decision that ends this job's work on the run.

        Once another supervisor owns the run folder nothing more is written, asked or requeued.
        """
        try:
            return self.ownership.begin() or self._run()
        except FencedError as error:
            log.warning("fenced", why=str(error))
            return Decision(Cause.FENCED, Action.STOP, str(error))

    def _run(self) -> Decision:
        if (instead := self._await_predecessor()) is not None:
            return instead
        self._requeue_if_excluded_nodes_returned()
        while True:
            if self._cancel_requested():
                return self._cancelled_between_attempts()
            evidence, decision = self._attempt()
            if decision.action is Action.REQUEUE and self.allocation.has_queue:
                decision = self._requeue(evidence, decision)
            if decision.action is Action.RESUBMIT:
                decision = self._resubmit(evidence, decision)
            if decision.action not in (Action.RESTART, Action.REQUEUE):
                return self._finish_job(evidence, decision)
            if decision.action is Action.REQUEUE:
                self.allocation.renew()
            # A first restart comes at once; ranks that die without a step are started less eagerly.
            idle = attempts_without_progress(evidence, self._history()[:-1], decision.cause)
            time.sleep(RESTART_PAUSES_S[min(idle, len(RESTART_PAUSES_S) - 1)])

    def _attempt(self) -> tuple[AttemptEvidence, Decision]:
        """One attempt from its claim to the record of its end."""
        first = not self.ownership.claimed
        self.nodes.place()
        attempt = self.ownership.claim()
        if first:
            self._take_over()
        history = self._history()
        if first and (end := after_lost_supervisors(history, self.config.resilience)):
            return self._evidence_without_ranks(attempt, history), end
        preflight, leave = self._preflight(attempt, history) if first else ({}, None)
        self._record_start(attempt, preflight)
        if leave is not None:
            evidence = self._evidence_without_ranks(attempt, history)
            self._record_end(evidence, leave)
            return evidence, leave

        spawner = self.allocation.spawner
        if self.guard is not None:
            self.guard.ensure(self.nodes.living or spawner.nodes)
        self.watcher.ensure(attempt)
        log.info("attempt", attempt=attempt, ranks=spawner.world_size, nodes=spawner.nodes)
        watch = AttemptWatch(self.run_dir, self.config, self.allocation, self.signals, attempt)
        evidence = watch.run()

        nodes = self.nodes.after(evidence, history)
        decision = decide(evidence, history, nodes, self.config.resilience)
        if decision.rollback is not None:
            try:
                record_rollback(self.run_dir, decision.rollback, self.allocation.job_id)
            except OSError as error:
                why = f"{self.run_dir.skips} cannot be written: {error}"
                decision = after_failed_rollback(decision, why)
        self._record_end(evidence, decision)
        return evidence, decision

    def _preflight(
        self, attempt: int, history: Sequence[Attempt]
    ) -> tuple[dict[str, Any], Decision | None]:
        """Check the nodes before this job's first attempt; what to record, and whether to leave."""
        if self.config.preflight == "off":
            return {}, None
        nodes = self.nodes.living or self.allocation.spawner.nodes
        if self.guard is not None:
            self.guard.ensure(nodes)  # it may take minutes
        told = throttled(self._stop_requested)
        verdict = Preflight(self.run_dir, self.config, self.allocation, told).run(attempt, nodes)
        self.ownership.check()
        fields = {"preflight": verdict.in_short()}
        return fields, self.nodes.weigh(verdict, attempt, history)

    def _requeue(self, evidence: AttemptEvidence, decision: Decision) -> Decision:
        """Back into the queue; returns only what follows where that was not possible."""
        if self._cancel_requested():
            decision = _cancelled(decision)
        else:
            self.ownership.check()
            self.audit.requeue(evidence.attempt, decision)
            refused = self.requeue(self.nodes.exclusion(decision.exclude))
            self.audit.not_requeued(evidence.attempt, refused)
            decision = after_refused_requeue(decision, refused, self.config.resilience)
        if decision.action is not Action.RESUBMIT:
            self._record_end(evidence, decision)
        return decision

    def _resubmit(self, evidence: AttemptEvidence, decision: Decision) -> Decision:
        """A new job continues the run; this one ends. Never against a cancellation."""
        self.ownership.check()
        if self._cancel_requested():
            decision = _cancelled(decision)
        else:
            decision = self._submit_new_job(self.resubmit, decision)
        # The new job may have claimed the run already, and that is no reason for silence.
        self._record_end(evidence, decision, owned=decision.action is not Action.RESUBMIT)
        return decision

    def _submit_new_job(self, resubmit: Resubmit, decision: Decision) -> Decision:
        try:
            with self.audit.resubmit() as pending:
                pending.job_id = job_id = resubmit(decision.exclude)
        except (SubmitrainError, OSError) as error:
            self._submission_unknown = isinstance(error, SubmissionUnknownError)
            return after_failed_resubmission(decision, error)
        if self._cancel_requested():
            return _cancelled(decision)
        move_successors(self.run_dir, job_id)
        text = f"{decision.explanation}; job {job_id} continues the run"
        return replace(decision, explanation=text)

    def _finish_job(self, evidence: AttemptEvidence, decision: Decision) -> Decision:
        """The end of this job's work; the run's own, unless another job continues it."""
        if decision.action is Action.RESUBMIT:
            return decision  # the run is the new job's, which may have begun
        self.ownership.check()
        if decision.action is Action.LEAVE or decision.cause is Cause.FENCED:
            self.audit.published()
            return decision
        summary = {
            "state": decision.state,
            "cause": str(decision.cause),
            "explanation": decision.explanation + evidence.write_losses,
            "step": evidence.last_step,
            "attempts": evidence.attempt,
            "ended_at": round(time.time(), 3),
            "job_id": self.allocation.job_id,
        }
        retry_on_oserror(lambda: write_json_atomically(self.run_dir.summary, summary))
        try:
            # Second, since it reads all events: whoever kills us meanwhile leaves a summary behind.
            # The scheduler is not asked: it does not know this job's end yet.
            goodput = read_goodput(self.run_dir.root, ended=True, run=None).as_json()
            write_json_atomically(self.run_dir.summary, {**summary, "goodput": goodput})
        except Exception as error:  # an account must not change how the run ended
            log.warning("no_goodput", why=f"{type(error).__name__}: {error}")
        follow_up(self.run_dir, self.config, summary)
        if decision.action is Action.STOP and not self._submission_unknown:
            end_successors(self.run_dir, f"{decision.state}: {decision.explanation}")
        self.audit.published()
        self.watcher.shutdown()
        return decision

    def _await_predecessor(self) -> Decision | None:
        """Before the first attempt of a run with ``after``: what to do instead of beginning."""
        if self.config.after is None or self.run_dir.newest_attempt():
            return None
        before = Predecessor(Path(self.config.after))
        decision = DependencyWait(before, self.allocation.has_queue, self._stop_requested).wait()
        if decision is None or self._cancel_requested():
            return None  # a cancellation is the loop's to see
        if decision.cause is Cause.TERMINATED:
            decision = ended_while_waiting(self.allocation, self.config.resilience)
        log.warning("not_begun", action=str(decision.action), why=decision.explanation)
        if decision.action is Action.RESUBMIT:
            again = functools.partial(self.resubmit, dependency=before.dependency())
            decision = self._submit_new_job(again, decision)
        if decision.action is not Action.STOP:
            return decision
        return self._finish_job(self._evidence_without_ranks(0, ()), decision)

    def _requeue_if_excluded_nodes_returned(self) -> None:
        """Before the first attempt: back at once if Slurm gave this job nodes that it had left."""
        if self._cancel_requested() or not (exclude := self.nodes.leave_again()):
            return
        log.warning("leave_again", nodes=self.allocation.spawner.nodes, without=exclude)
        self.ownership.check()
        refused = self.requeue(self.nodes.exclusion(exclude))
        log.warning("stays", why=refused.explanation)

    def _cancelled_between_attempts(self) -> Decision:
        """The cancel request was there before an attempt began: start nothing."""
        self.ownership.check()
        self._take_over()
        before = read_attempts(self.run_dir)
        evidence = self._evidence_without_ranks(before[-1].number if before else 0, before)
        text = "cancelled by the user between attempts"
        return self._finish_job(evidence, Decision(Cause.CANCELLED, Action.STOP, text))

    def _take_over(self) -> None:
        """Remove the previous supervisor's summary and close its unfinished attempts."""
        self.run_dir.summary.unlink(missing_ok=True)
        for lost in self.attempts.close_lost():
            log.warning("lost_attempt", attempt=lost.number, job_id=lost.job_id)
        self.audit.published()

    def _evidence_without_ranks(self, attempt: int, history: Sequence[Attempt]) -> AttemptEvidence:
        """The evidence where no rank was started."""
        last_step = history[-1].last_step if history else None
        return AttemptEvidence(attempt, self.allocation.spawner.world_size, last_step=last_step)

    def _stop_requested(self) -> bool:
        return self.signals.terminated or self._cancel_requested()

    def _cancel_requested(self) -> bool:
        return retry_on_oserror(self.run_dir.cancel_request.exists)

    def _history(self) -> list[Attempt]:
        """Attempts of this job and of those that it continues: budgets are counted over them."""
        chain = chain_of(read_submissions(self.run_dir), self.allocation.job_id)
        return attempts_of_jobs(read_attempts(self.run_dir), chain)

    def _record_start(self, attempt: int, preflight: dict[str, Any]) -> None:
        allocation, spawner = self.allocation, self.allocation.spawner
        idle = {"nodes_idle": list(self.nodes.idle)} if self.nodes.idle else {}
        self.attempts.start(
            attempt,
            nodes=list(spawner.nodes),
            world_size=spawner.world_size,
            restart_count=allocation.restarts,
            ends_at=allocation.ends_at(),
            allocated_nodes=allocation.num_nodes,
            job_started_at=allocation.job_started_at,
            **idle,
            **preflight,
        )

    def _record_end(
        self, evidence: AttemptEvidence, decision: Decision, *, owned: bool = True
    ) -> None:
        """Write how the attempt ended; ``owned`` False: another job may own the run by now."""
        if owned:
            self.ownership.check()
        attempt, rank = evidence.attempt, evidence.culprit_rank
        tail = log_tail(self.run_dir, attempt, rank) if rank is not None else []
        self.attempts.end(
            attempt,
            decision,
            **evidence.end_fields(),
            nodes=list(self.allocation.spawner.nodes),
            log_tail=tail,
            **self.nodes.end_fields(attempt, decision),
        )
        log.info(
            "attempt_ended",
            attempt=attempt,
            cause=str(decision.cause),
            action=str(decision.action),
            step=evidence.last_step,
            why=decision.explanation,
        )
        for line in tail:
            log.warning("log", rank=rank, line=line)


def _cancelled(decision: Decision) -> Decision:
    text = "cancelled by the user"
    return replace(decision, cause=Cause.CANCELLED, action=Action.STOP, explanation=text)
