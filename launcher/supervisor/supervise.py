"""Keeps one run alive within one job: attempt after attempt, until it is done or cannot go on here.

    while True:
        claim an attempt → start the ranks → watch them → decide → record → act

Runs as the batch job's own process (or a local one). Needs no torch.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import structlog

from submitrain.attempts import (
    RESUME_HINT,
    Action,
    Attempt,
    AttemptWriter,
    Cause,
    Decision,
    of_jobs,
    read_attempts,
)
from submitrain.config import RunConfig
from submitrain.errors import FencedError, SubmitrainError
from submitrain.launcher.checks.preflight import Preflight, throttled
from submitrain.launcher.submit.audit_events import SupervisorActs
from submitrain.launcher.submit.claims import chain_of, read_submissions
from submitrain.launcher.submit.dependency import (
    Predecessor,
    Turn,
    end_successors,
    ended_while_waiting,
    move_successors,
)
from submitrain.launcher.submit.submit import SubmissionUnknownError
from submitrain.launcher.supervisor.after_run import follow_up
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.launcher.supervisor.attempt import AttemptWatch, log_tail
from submitrain.launcher.supervisor.decide import (
    attempts_without_progress,
    decide,
    note_rollback,
    vanished_in_a_row,
)
from submitrain.launcher.supervisor.evidence import AttemptEvidence, attempt_end_fields
from submitrain.launcher.supervisor.guard import Guard
from submitrain.launcher.supervisor.nodes import NodeKeeper
from submitrain.launcher.supervisor.ownership import Ownership, patiently
from submitrain.launcher.supervisor.requeue import SignalNotes
from submitrain.launcher.supervisor.watcher import RunWatcher
from submitrain.monitor.accounting.goodput import read_goodput
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.slurm.client import JobInfo

RESTART_PAUSES_S = (0.1, 1.0, 5.0)
"""Seconds before the next attempt, by attempts in a row without a new step; the last one stays."""

log = structlog.get_logger(__name__)


class Requeue(Protocol):
    """Puts this job back into the queue; returns only when that did not happen."""

    def __call__(self, job: JobInfo | None, exclude: tuple[str, ...]) -> Decision: ...


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
    resubmit: Resubmit | None = None

    def __post_init__(self) -> None:
        self.attempts = AttemptWriter(self.run_dir, self.allocation.job_id)
        self.ownership = Ownership(self.run_dir, self.allocation.job_id, self.allocation.restarts)
        self.nodes = NodeKeeper(self.run_dir, self.config, self.allocation)
        self._guard: Guard | None = None
        self._told_once: dict[str, Any] = {}
        self._may_go_on = False  # in a new job of which nobody knows whether Slurm took it
        self.acts = SupervisorActs(self.run_dir, self.allocation.job_id)
        queue = self.allocation.has_queue
        self.watcher = RunWatcher.of(self.run_dir, self.config, on_slurm=queue)

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
        if (instead := self._await_turn()) is not None:
            return instead
        self._leave_again()
        while True:
            if self._cancel_requested():
                return self._cancelled_before()
            evidence, decision = self._attempt()
            if decision.action is Action.REQUEUE and self.allocation.has_queue:
                decision = self._requeue(evidence, decision)
            if decision.action is Action.RESUBMIT:
                decision = self._resubmit(evidence, decision)
            if decision.action not in (Action.RESTART, Action.REQUEUE):
                return self._conclude(evidence, decision)
            if decision.action is Action.REQUEUE:
                self.allocation.renew()
            self._pause(evidence, decision)

    def _await_turn(self) -> Decision | None:
        """Before the first attempt of a run with ``after``: what to do instead of beginning."""
        if self.config.after is None or self.run_dir.newest_attempt():
            return None
        before = Predecessor(Path(self.config.after))
        decision = Turn(before, self.allocation.has_queue, self._told_to_leave).await_turn()
        if decision is None or self._cancel_requested():
            return None  # a cancellation is the loop's to see
        if decision.cause is Cause.TERMINATED:
            decision = ended_while_waiting(self.allocation, (), self.config.resilience)
        log.warning("not_begun", action=str(decision.action), why=decision.explanation)
        if decision.action is Action.RESUBMIT and self.resubmit is not None:
            again = functools.partial(self.resubmit, dependency=before.dependency())
            decision = self._submitted_anew(again, decision)
        if decision.action is not Action.STOP:
            return decision
        nothing = AttemptEvidence(attempt=0, world_size=self.allocation.spawner.world_size)
        return self._conclude(nothing, decision)

    def _told_to_leave(self) -> bool:
        return self.signals.terminated or self._cancel_requested()

    def _leave_again(self) -> None:
        """Before the first attempt: back at once if Slurm gave this job nodes that it had left."""
        if self._cancel_requested() or not self.nodes.leaves_again():
            return
        log.warning("leave_again", nodes=self.allocation.spawner.nodes, without=self.nodes.exclude)
        self.ownership.check()
        refused = self.requeue(None, (*self.nodes.users_exclude, *self.nodes.exclude))
        log.warning("stays", why=refused.explanation)

    def _cancel_requested(self) -> bool:
        return patiently(self.run_dir.cancel_request.exists)

    def _take_over(self) -> None:
        """Forget what the last supervisor made of the run, and close what it left open."""
        self.run_dir.summary.unlink(missing_ok=True)
        for lost in self.attempts.close_lost():
            log.warning("lost_attempt", attempt=lost.number, job_id=lost.job_id)
        self.acts.published()

    def _pause(self, evidence: AttemptEvidence, decision: Decision) -> None:
        """A first restart comes at once; ranks that die without a step are started less eagerly."""
        history = self._history()[:-1]
        idle = attempts_without_progress(evidence, history, decision.cause)
        time.sleep(RESTART_PAUSES_S[min(idle, len(RESTART_PAUSES_S) - 1)])

    def _history(self) -> list[Attempt]:
        """Attempts of this job and of those that it continues: budgets are counted over them."""
        chain = chain_of(read_submissions(self.run_dir), self.allocation.job_id)
        return of_jobs(read_attempts(self.run_dir), chain)

    def _cancelled_before(self) -> Decision:
        """The cancel request was there before an attempt began: start nothing."""
        decision = Decision(Cause.CANCELLED, Action.STOP, "cancelled by the user between attempts")
        self.ownership.check()
        self._take_over()
        before = read_attempts(self.run_dir)
        last = before[-1] if before else None
        evidence = AttemptEvidence(
            attempt=last.number if last else 0,
            world_size=self.allocation.spawner.world_size,
            last_step=last.last_step if last else None,
        )
        return self._conclude(evidence, decision)

    def _attempt(self) -> tuple[AttemptEvidence, Decision]:
        job_id = self.allocation.job_id
        self.nodes.place()
        first = not self.ownership.claimed
        attempt = self.ownership.claim()
        if first:
            self._take_over()
        history = self._history()
        if first and (hopeless := vanished_in_a_row(history, self.config.resilience)):
            return self._nothing_done(attempt, history), hopeless
        unfit = self._preflight(attempt, history) if first else None
        spawner = self.allocation.spawner
        self.attempts.start(
            attempt,
            nodes=list(spawner.nodes),
            world_size=spawner.world_size,
            restart_count=self.allocation.restarts,
            ends_at=self.allocation.ends_at(),
            allocated_nodes=self.allocation.num_nodes,
            job_started_at=self.allocation.job_started_at,
            **self.nodes.at_start(),
            **self._told_once,
        )
        self._told_once = {}
        if unfit is not None:
            evidence = self._nothing_done(attempt, history)
            self._record(evidence, unfit)
            return evidence, unfit
        self._keep_guard(self.nodes.living or spawner.nodes)
        self.watcher.stand(attempt)
        log.info("attempt", attempt=attempt, ranks=spawner.world_size, nodes=spawner.nodes)
        watch = AttemptWatch(self.run_dir, self.config, self.allocation, self.signals, attempt)
        evidence = watch.run()
        decision = decide(evidence, history, self.config.resilience)
        decision = self.nodes.follow(evidence, decision, history)
        decision = note_rollback(self.run_dir, evidence, decision, job_id)
        self._record(evidence, decision)
        return evidence, decision

    def _nothing_done(self, attempt: int, history: Sequence[Attempt]) -> AttemptEvidence:
        """The evidence of an attempt that never started a rank."""
        last_step = history[-1].last_step if history else None
        return AttemptEvidence(attempt, self.allocation.spawner.world_size, last_step=last_step)

    def _preflight(self, attempt: int, history: Sequence[Attempt]) -> Decision | None:
        """Look at this job's nodes once, before its first attempt; a decision to leave, or None."""
        if self.config.preflight == "off":
            return None
        nodes = self.nodes.living or self.allocation.spawner.nodes
        self._keep_guard(nodes)  # it may take minutes
        told = throttled(self._told_to_leave)
        verdict = Preflight(self.run_dir, self.config, self.allocation, told).run(attempt, nodes)
        self.ownership.check()
        self._told_once = {"preflight": verdict.in_short()}
        return self.nodes.weigh(verdict, attempt, history)

    def _keep_guard(self, nodes: Sequence[str]) -> None:
        """Where a queue can take the job back, somebody must ask for it if this node is lost."""
        if not self.allocation.has_queue:
            return
        if self._guard is None:
            first = os.environ.get("SLURMD_NODENAME") or nodes[0]
            restarts = self.allocation.restarts
            self._guard = Guard(self.run_dir, self.allocation.job_id, first, restarts)
        self._guard.stand(nodes)

    def _record(self, evidence: AttemptEvidence, decision: Decision) -> None:
        self.ownership.check()
        self._write(evidence, decision)

    def _write(self, evidence: AttemptEvidence, decision: Decision) -> None:
        nodes = list(self.allocation.spawner.nodes)
        rank = culprit_rank(evidence)
        tail = log_tail(self.run_dir, evidence.attempt, rank) if rank is not None else []
        more = {"nodes": nodes, "log_tail": tail, **self.nodes.at_end(evidence.attempt)}
        fields = attempt_end_fields(evidence) | more
        self.attempts.end(evidence.attempt, decision, **fields)
        log.info(
            "attempt_ended",
            attempt=evidence.attempt,
            cause=str(decision.cause),
            action=str(decision.action),
            step=evidence.last_step,
            why=decision.explanation,
        )
        for line in tail:
            log.warning("log", rank=rank, line=line)

    def _requeue(self, evidence: AttemptEvidence, decision: Decision) -> Decision:
        """Back into the queue; comes back only with the reason why that was not possible."""
        if self._cancel_requested():
            refused = Decision(Cause.CANCELLED, Action.STOP, "cancelled by the user")
        else:
            self.ownership.check()
            self.acts.requeue(evidence.attempt, decision)
            refused = self.requeue(evidence.job, (*self.nodes.users_exclude, *self.nodes.exclude))
            self.acts.not_requeued(evidence.attempt, refused)
        if refused.action is Action.RESUBMIT:
            text = f"{decision.explanation}; {refused.explanation}"
            return Decision(decision.cause, Action.RESUBMIT, text)
        if refused.action is Action.STOP and refused.cause is not Cause.CANCELLED:
            refused = Decision(
                decision.cause,
                Action.STOP,
                f"{decision.explanation}; {refused.explanation}; {RESUME_HINT}",
            )
        self._record(evidence, refused)
        return refused

    def _resubmit(self, evidence: AttemptEvidence, decision: Decision) -> Decision:
        """A new job goes on with the run; this one ends. Never against a cancellation."""
        self.ownership.check()
        if self._cancel_requested():
            decision = Decision(Cause.CANCELLED, Action.STOP, "cancelled by the user")
        elif self.resubmit is None or not self.config.resilience.resubmit:
            text = f"{decision.explanation}; {RESUME_HINT}"
            decision = Decision(decision.cause, Action.STOP, text)
        else:
            decision = self._submitted_anew(self.resubmit, decision)
        if decision.action is Action.RESUBMIT:
            # The new job may have claimed the run already, and that is no reason for silence.
            self._write(evidence, decision)
        else:
            self._record(evidence, decision)
        return decision

    def _submitted_anew(self, resubmit: Resubmit, decision: Decision) -> Decision:
        try:
            with self.acts.resubmit() as act:
                act.job_id = job_id = resubmit(self.nodes.exclude)
        except (SubmitrainError, OSError) as error:
            self._may_go_on = isinstance(error, SubmissionUnknownError)
            text = f"{decision.explanation}; no new job: {error}; {RESUME_HINT}"
            return Decision(decision.cause, Action.STOP, text)
        if self._cancel_requested():
            return Decision(Cause.CANCELLED, Action.STOP, "cancelled by the user")
        move_successors(self.run_dir, job_id)
        text = f"{decision.explanation}; job {job_id} goes on with the run"
        return Decision(decision.cause, Action.RESUBMIT, text)

    def _conclude(self, evidence: AttemptEvidence, decision: Decision) -> Decision:
        if decision.action is Action.RESUBMIT:
            return decision  # the run is the new job's, which may have begun
        self.ownership.check()
        if decision.action is not Action.LEAVE and decision.cause is not Cause.FENCED:
            summary = {**summary_of(evidence, decision), "job_id": self.allocation.job_id}
            patiently(lambda: write_json_atomically(self.run_dir.summary, summary))
            self._add_goodput(summary)
            follow_up(self.run_dir, self.config, summary)
            if decision.action is Action.STOP and not self._may_go_on:
                why = f"{decision.state}: {decision.explanation}"
                end_successors(self.run_dir, why)
            self.acts.published()
            self.watcher.farewell()
            return decision
        self.acts.published()
        return decision

    def _add_goodput(self, summary: dict[str, Any]) -> None:
        """Second, since it reads all events: whoever kills us meanwhile leaves a summary behind."""
        try:
            # The scheduler is not asked: it does not know this job's end yet.
            goodput = read_goodput(self.run_dir.root, ended=True, run=None).as_json()
            write_json_atomically(self.run_dir.summary, {**summary, "goodput": goodput})
        except Exception as error:  # an account must not change how the run ended
            log.warning("no_goodput", why=f"{type(error).__name__}: {error}")


def summary_of(evidence: AttemptEvidence, decision: Decision) -> dict[str, Any]:
    """What ``summary.json`` holds, and what the job returns."""
    return {
        "state": decision.state,
        "cause": str(decision.cause),
        "explanation": decision.explanation + evidence.losses,
        "step": evidence.last_step,
        "attempts": evidence.attempt,
        "ended_at": round(time.time(), 3),
    }


def culprit_rank(evidence: AttemptEvidence) -> int | None:
    """The rank whose log is worth showing: the first that failed by itself, else that died."""
    if evidence.all_finished or evidence.all_stopped:
        return None
    if evidence.hang is not None and evidence.hang.rank is not None:
        return evidence.hang.rank
    own = [failure.rank for failure in evidence.failures if not failure.victim]
    dead = [one.rank for one in evidence.exits if one.died and not one.ours]
    victims = [failure.rank for failure in evidence.failures]
    return next(iter([*own, *dead, *victims]), None)
