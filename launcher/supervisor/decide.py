"""What follows the end of an attempt. Pure: the supervisor gathers the facts and carries it out.

``decide`` is the whole decision. The other functions here answer what may be asked besides: what
follows where the decision cannot be carried out, and whether to begin at all.

Budgets are per cause and count the attempts of one job and of those that it continues (a requeue
keeps the job's id, a new job by our hand the chain; ``resume`` starts with fresh budgets):

- ``max_restarts``: restarts in place, whether or not steps advanced between them;
- ``max_requeues``: requeues and resubmissions by the supervisor;
- ``max_rollbacks``: restarts that go back and leave data out; they have to come to where the
  earlier attempts were, so that they are no attempts without progress;
- ``max_attempts_without_progress``: attempts in a row that reached no step beyond all earlier ones.
  Attempts that others ended (preemption, an administrator, TERM) prove nothing about the run: they
  neither count nor reset.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from submitrain.attempts import RESUME_HINT, Action, Attempt, Cause, Decision
from submitrain.config.job import ResilienceConfig
from submitrain.launcher.supervisor.classify import ANOMALIES, classify
from submitrain.launcher.supervisor.evidence import AttemptEvidence
from submitrain.launcher.supervisor.placement import (
    NodeState,
    blame,
    choose,
    describe_placement,
    place,
)
from submitrain.text import counted

ROLLBACK_CAUSES = frozenset(ANOMALIES.values())
"""Causes after which the run goes back to before the trouble and leaves data out."""
OUT_OF_MEMORY_CAUSES = frozenset({Cause.OUT_OF_MEMORY, Cause.HOST_OUT_OF_MEMORY})
CONTINUING_ACTIONS = frozenset({Action.RESTART, Action.REQUEUE, Action.RESUBMIT})
EXTERNAL_CAUSES = frozenset(
    {Cause.PREEMPTED, Cause.REQUEUED, Cause.TERMINATED, Cause.CANCELLED, Cause.PREFLIGHT}
)
"""Causes outside the run: they say nothing about whether it can make progress."""
MAX_PREFLIGHT_REQUEUES = 2
"""How often in a row a run goes back into the queue for what a preflight found.

After that it trains on the nodes that it has: a check may be wrong, and must not keep it for ever.
"""


def decide(
    evidence: AttemptEvidence,
    history: Sequence[Attempt],
    nodes: NodeState | None,
    limits: ResilienceConfig,
) -> Decision:
    """What follows an attempt; ``history`` holds the earlier ones of this job and its chain.

    ``nodes`` None: there is nothing to choose, as on one machine, or it does not matter.

    ================== ============================================ ==============================
    outcome            evidence (the first that holds)              action
    ================== ============================================ ==============================
    finished           every rank recorded its finish               done
    cancelled          cancel.json, or TERM and scancel             stop
    preempted,         TERM, and Slurm has requeued the job, or     leave: Slurm brings it back
    requeued,          does not answer
    node lost
    preempted          TERM, and Slurm does not requeue the job     resubmit
    time limit         TERM by Slurm's time limit                   resubmit
    terminated         TERM by anybody else                         stop
    node lost          Slurm or the node itself says so             restart on the other nodes
    host memory        the kernel killed a rank                     restart; twice at a step: stop
    hung               no progress within the phase's budget        restart
    user, checkpoint   a rank raised that error                     stop
    error, fenced
    not finite,        a rank raised that error, with data to       restart, going back;
    loss spike         leave out                                    without such data: stop
    out of memory      a rank raised it                             restart; twice at a step: stop
    rank died          a rank raised an error blamed on its host    restart
    program error      a rank raised anything else                  stop
    preempted          ranks stopped, and Slurm announced it        requeue
    terminated         ranks stopped for a TERM that only they got  restart
    time limit         ranks stopped as we asked, or were warned    requeue
    rank died          a rank left no failure record                restart
    container error    ranks never started, the runtime says why    on all nodes: stop; restart
    launch failed      ranks never started                          restart
    crash loop         too many attempts without a new step         stop instead of going on
    (the cause)        its budget is spent                          stop instead of going on
    (the cause)        the time limit is too near for a restart     requeue instead of restart
    (the cause)        too few good nodes are left in the job       requeue without the bad ones
    out of memory      on fewer nodes than the job began with       requeue for all nodes
    ================== ============================================ ==============================
    """
    decision = _apply_budgets(classify(evidence, history), evidence, history, limits)
    if evidence.has_queue:
        decision = replace(decision, blamed=blame(evidence, decision.cause))
    if nodes is not None and needs_nodes(decision):
        decision = _on_nodes(decision, nodes, history, limits)
    if decision.cause in ROLLBACK_CAUSES and decision.action in (Action.RESTART, Action.REQUEUE):
        decision = replace(decision, rollback=evidence.rollback)
    return decision


def needs_nodes(decision: Decision) -> bool:
    """Whether the state of the nodes may change what follows."""
    return decision.action in CONTINUING_ACTIONS or decision.cause in OUT_OF_MEMORY_CAUSES


def _apply_budgets(
    decision: Decision,
    evidence: AttemptEvidence,
    history: Sequence[Attempt],
    limits: ResilienceConfig,
) -> Decision:
    """The decision to go on, while every budget that it draws on lasts; else the end."""
    if decision.action is Action.RESUBMIT and not limits.resubmit:
        return _stop(decision, "resilience.resubmit is false", RESUME_HINT)
    if decision.action not in CONTINUING_ACTIONS:
        return decision
    if decision.cause in ROLLBACK_CAUSES:
        spent = sum(
            one.cause in ROLLBACK_CAUSES and one.action in CONTINUING_ACTIONS for one in history
        )
        if spent >= limits.max_rollbacks:
            return _no_more_rollbacks(decision, evidence, spent, limits)
    idle = attempts_without_progress(evidence, history, decision.cause)
    if idle >= limits.max_attempts_without_progress:
        return _crash_loop(idle, decision.explanation)
    remaining_s = evidence.remaining_s
    if decision.action is Action.RESTART and remaining_s is not None:
        # A restart so close to the limit would only be stopped again.
        action = Action.REQUEUE if remaining_s <= evidence.lead_s else Action.RESTART
        decision = replace(decision, action=action)
    return _apply_action_budget(decision, history, limits)


def _no_more_rollbacks(
    decision: Decision, evidence: AttemptEvidence, spent: int, limits: ResilienceConfig
) -> Decision:
    text = decision.explanation.partition("; going back to before step")[0]
    times = f"the run has gone back {counted(spent, 'time')} already"
    samples = ""
    if (rollback := evidence.rollback) is not None and rollback.samples:
        shown = ", ".join(map(str, rollback.samples[:8]))
        more = ", ..." if len(rollback.samples) > 8 else ""
        samples = f". Look at the samples {shown}{more} (step {rollback.last_step})"
    return Decision(
        decision.cause,
        Action.STOP,
        f"{text}; {times if spent else 'the run has not gone back'}, resilience.max_rollbacks "
        f"({limits.max_rollbacks}) is spent{samples}. Lower optimizer.lr, lengthen the warm-up, "
        "lower clip_grad_norm.max_norm or compute in float32, then launch it anew",
    )


def _crash_loop(idle: int, last: str) -> Decision:
    text = f"{idle} attempts in a row without a new step, the last one: {last}"
    return Decision(Cause.CRASH_LOOP, Action.STOP, text)


def _apply_action_budget(
    decision: Decision, history: Sequence[Attempt], limits: ResilienceConfig
) -> Decision:
    """The decision while the budget of its action lasts, else the end."""
    if decision.action is Action.RESTART:
        name, budget, alike = "max_restarts", limits.max_restarts, {Action.RESTART}
    else:
        name, budget = "max_requeues", limits.max_requeues
        alike = {Action.REQUEUE, Action.RESUBMIT}
    if sum(record.action in alike for record in history) < budget:
        return decision
    return _stop(decision, f"resilience.{name} ({budget}) is spent", RESUME_HINT)


def _on_nodes(
    decision: Decision,
    nodes: NodeState,
    history: Sequence[Attempt],
    limits: ResilienceConfig,
) -> Decision:
    """What the nodes make of it: a restart may have to become a requeue."""
    placement = place(nodes)
    used, wanted = len(nodes.current), nodes.rule.wanted
    if decision.cause in OUT_OF_MEMORY_CAUSES and 0 < used < wanted:
        words = f"with {used} of {wanted} nodes: back into the queue for all"
    elif decision.action is not Action.RESTART:
        requeues = decision.action in CONTINUING_ACTIONS
        return replace(decision, exclude=placement.exclude) if requeues else decision
    else:
        struck = [node for node in nodes.strikes if node in nodes.current]
        told = [f"{node} {nodes.strikes[node]}" for node in struck if node not in nodes.lost]
        words = "; ".join(filter(None, [*told, describe_placement(placement, nodes)]))
        if placement.nodes:
            return _explained(decision, words)
    leave = replace(decision, action=Action.REQUEUE, exclude=placement.exclude)
    return _apply_action_budget(_explained(leave, words), history, limits)


def after_preflight(
    unfit: Mapping[str, str],
    nodes: NodeState,
    history: Sequence[Attempt],
    limits: ResilienceConfig,
    *,
    comes_back: bool,
) -> Decision:
    """What follows for nodes that a preflight found unfit, and why: restart on ``nodes``, or leave.

    A spare takes their place, or fewer nodes go on; a node that cannot be done without stays.
    ``comes_back``: the run gets another job, or this one again, when it leaves.
    """
    placement = place(nodes)
    text = "; ".join(f"{node} is unfit ({why})" for node, why in unfit.items())
    leave = Decision(Cause.PREFLIGHT, Action.REQUEUE, text, exclude=placement.exclude)
    leave = _explained(leave, describe_placement(placement, nodes))
    leave = _apply_action_budget(leave, history, limits)
    stay, last = placement.nodes, history[-MAX_PREFLIGHT_REQUEUES:]
    left_before = len(last) == MAX_PREFLIGHT_REQUEUES and all(
        one.cause is Cause.PREFLIGHT for one in last
    )
    hopeless = not comes_back or leave.action is Action.STOP
    if not stay and (hopeless or left_before):
        stay = choose(nodes, forgive=nodes.quarantined)
    if nodes.rule.enough(len(stay)):
        return Decision(Cause.PREFLIGHT, Action.RESTART, text, nodes=stay)
    return leave


def after_failed_rollback(decision: Decision, why: str) -> Decision:
    """A rollback that could not be written down must not happen."""
    return replace(_stop(decision, why), rollback=None)


def after_refused_requeue(
    decision: Decision, refused: Decision, limits: ResilienceConfig
) -> Decision:
    """What follows where Slurm did not take the job back; ``refused`` is what it did instead."""
    if refused.cause is Cause.CANCELLED:
        return replace(refused, exclude=decision.exclude, blamed=decision.blamed)
    if refused.action is Action.RESUBMIT and limits.resubmit:
        return replace(_explained(decision, refused.explanation), action=Action.RESUBMIT)
    return _stop(decision, refused.explanation, RESUME_HINT)


def after_failed_resubmission(decision: Decision, error: Exception) -> Decision:
    """The end: Slurm did not take a new job either."""
    return _stop(decision, f"no new job: {error}", RESUME_HINT)


def after_lost_supervisors(history: Sequence[Attempt], limits: ResilienceConfig) -> Decision | None:
    """Whether to give up because supervisor after supervisor was killed without a new step.

    Nobody judged those attempts, so their successor has to, before it starts another one.
    """
    if not history or history[-1].cause is not Cause.LOST:
        return None
    last = history[-1]
    evidence = AttemptEvidence(
        attempt=last.number, world_size=0, first_step=last.first_step, last_step=last.last_step
    )
    idle = attempts_without_progress(evidence, history[:-1], Cause.LOST)
    if idle < limits.max_attempts_without_progress:
        return None
    return _crash_loop(idle, f"{last.explanation}; {RESUME_HINT}")


def attempts_without_progress(
    evidence: AttemptEvidence, history: Sequence[Attempt], cause: Cause
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
        elif what not in EXTERNAL_CAUSES | ROLLBACK_CAUSES:
            idle += 1
    return idle


def _explained(decision: Decision, *words: str) -> Decision:
    return replace(decision, explanation="; ".join(filter(None, [decision.explanation, *words])))


def _stop(decision: Decision, *words: str) -> Decision:
    return replace(_explained(decision, *words), action=Action.STOP)
