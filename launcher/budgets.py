"""How often what may go wrong before a run stops. Pure.

Budgets are per cause and count the attempts of one job and of those that it continues (a requeue
keeps the job's id, a new job by our hand the chain; ``resume`` starts with fresh budgets):

- ``max_restarts``: restarts in place, whether or not steps advanced between them;
- ``max_requeues``: returns to the queue by our hand, as the same job or as a new one;
- ``max_rollbacks``: restarts that go back and leave data out (``launcher.rollback``); they have to
  come to where the earlier attempts were, so that they are no attempts without progress;
- ``max_attempts_without_progress``: attempts in a row that reached no step beyond all earlier ones.
  Attempts that others ended (preemption, an administrator, TERM) prove nothing about the run: they
  neither count nor reset.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.attempts import AttemptRecord
from launcher.evidence import AttemptEvidence
from launcher.outcome import RESUME_HINT, Action, Cause, Decision
from launcher.rollback import GOES_BACK, without_budget
from train.config.sections import ResilienceConfig

NEUTRAL = frozenset(
    {Cause.PREEMPTED, Cause.REQUEUED, Cause.TERMINATED, Cause.CANCELLED, Cause.PREFLIGHT}
)
"""Causes outside the run: they say nothing about whether it can make progress."""


def within_budgets(
    decision: Decision,
    evidence: AttemptEvidence,
    history: Sequence[AttemptRecord],
    limits: ResilienceConfig,
) -> Decision:
    """The decision to go on, while every budget that it draws on lasts; else the end."""
    if (stop := without_budget(decision, evidence, history, limits)) is not None:
        return stop
    idle = attempts_without_progress(evidence, history, decision.cause)
    if idle >= limits.max_attempts_without_progress:
        return Decision(
            Cause.CRASH_LOOP,
            Action.STOP,
            f"{idle} attempts in a row without a new step, the last one: {decision.explanation}",
        )
    action = decision.action
    remaining_s = evidence.remaining_s
    if action is Action.RESTART and remaining_s is not None and remaining_s <= evidence.lead_s:
        # A restart so close to the limit would only be stopped again.
        action = Action.REQUEUE
    return within_budget(Decision(decision.cause, action, decision.explanation), history, limits)


def within_budget(
    decision: Decision, history: Sequence[AttemptRecord], limits: ResilienceConfig
) -> Decision:
    """The decision while its budget lasts, else the end; new jobs count as requeues."""
    alike = {Action.RESTART} if decision.action is Action.RESTART else _BACK
    spent = sum(record.action in alike for record in history)
    name = "max_restarts" if decision.action is Action.RESTART else "max_requeues"
    budget: int = getattr(limits, name)
    if spent < budget:
        return decision
    return Decision(
        decision.cause,
        Action.STOP,
        f"{decision.explanation}; resilience.{name} ({budget}) is spent; {RESUME_HINT}",
    )


_BACK = frozenset({Action.REQUEUE, Action.RESUBMIT})


def attempts_without_progress(
    evidence: AttemptEvidence, history: Sequence[AttemptRecord], cause: Cause
) -> int:
    """How many attempts in a row, this one included, reached no step beyond all earlier ones."""
    best, idle = -1, 0
    steps = [(one.cause, one.first_step, one.last_step) for one in history]
    for what, first, last in [*steps, (cause, evidence.first_step, evidence.last_step)]:
        best = max(best, first if first is not None else 0)
        advanced = last is not None and last > best
        best = max(best, last if last is not None else 0)
        if advanced:
            idle = 0
        elif what not in NEUTRAL | GOES_BACK:
            idle += 1
    return idle


def vanished_in_a_row(
    history: Sequence[AttemptRecord], limits: ResilienceConfig
) -> Decision | None:
    """Whether to give up because supervisor after supervisor was killed without a new step.

    Nobody judged those attempts, so their successor has to, before it starts another one.
    """
    if not history or history[-1].cause is not Cause.LOST:
        return None
    last = history[-1]
    evidence = AttemptEvidence(
        attempt=last.attempt, world_size=0, first_step=last.first_step, last_step=last.last_step
    )
    idle = attempts_without_progress(evidence, history[:-1], Cause.LOST)
    if idle < limits.max_attempts_without_progress:
        return None
    return Decision(
        Cause.CRASH_LOOP,
        Action.STOP,
        f"{idle} attempts in a row without a new step, the last one: {last.explanation}; "
        f"{RESUME_HINT}",
    )
