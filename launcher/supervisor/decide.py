"""What became of an attempt, and what follows: a pure function of recorded facts.

``decide(evidence, history, limits)`` reads like the table of outcomes in the architecture notes,
from the strongest evidence to the weakest. It asks nobody and touches nothing.

Going back after steps that were not finite, or a loss spike: whether, where to, and the record.

The ranks find the trouble and name the data; the supervisor decides here whether to go back, and
writes that down before the next attempt starts. Pure but for ``note_rollback``.

How often what may go wrong before a run stops. Pure.

Budgets are per cause and count the attempts of one job and of those that it continues (a requeue
keeps the job's id, a new job by our hand the chain; ``resume`` starts with fresh budgets):

- ``max_restarts``: restarts in place, whether or not steps advanced between them;
- ``max_requeues``: returns to the queue by our hand, as the same job or as a new one;
- ``max_rollbacks``: restarts that go back and leave data out (``launcher.supervisor.decide``);
  they have to
  come to where the earlier attempts were, so that they are no attempts without progress;
- ``max_attempts_without_progress``: attempts in a row that reached no step beyond all earlier ones.
  Attempts that others ended (preemption, an administrator, TERM) prove nothing about the run: they
  neither count nor reset.
"""

from __future__ import annotations

from collections.abc import Sequence

from submitrain.attempts import RESUME_HINT, Action, Attempt, Cause, Decision
from submitrain.config.job import ResilienceConfig
from submitrain.launcher.supervisor.evidence import (
    AttemptEvidence,
    RankExit,
    RankFailure,
    StopCause,
    describe_exit,
    describe_failure,
    name_rank,
    refused_exits,
)
from submitrain.monitor.diagnose import FailureClass as F
from submitrain.monitor.diagnose import Trust
from submitrain.rollbacks import Rollback, Skips, record_rollback
from submitrain.run_folder import RunDir

ANOMALIES = {"NotFiniteError": Cause.NOT_FINITE, "LossSpikeError": Cause.LOSS_SPIKE}
"""By the exception that a rank ended with."""
GOES_BACK = frozenset(ANOMALIES.values())


def of_anomaly(kind: str, text: str, evidence: AttemptEvidence) -> Decision:
    """Go back where the ranks said how; ``kind`` is the exception's name."""
    cause, rollback = ANOMALIES[kind], evidence.rollback
    if rollback is None:
        return Decision(cause, Action.STOP, f"{text}; the ranks named no data to leave out")
    return Decision(
        cause,
        Action.RESTART,
        f"{text}; going back to before step {rollback.first_step}, without the positions "
        f"{Skips.of(rollback.windows).text}",
    )


def without_budget(
    decision: Decision,
    evidence: AttemptEvidence,
    history: Sequence[Attempt],
    limits: ResilienceConfig,
) -> Decision | None:
    """The decision to stop once ``max_rollbacks`` is spent; None while there is budget left."""
    if decision.cause not in GOES_BACK:
        return None
    again = (Action.RESTART, Action.REQUEUE)
    spent = sum(record.cause in GOES_BACK and record.action in again for record in history)
    if spent < limits.max_rollbacks:
        return None
    text = decision.explanation.partition("; going back to before step")[0]
    return Decision(
        decision.cause,
        Action.STOP,
        f"{text}; {_times(spent)}, resilience.max_rollbacks ({limits.max_rollbacks}) is spent"
        f"{_samples(evidence.rollback)}. Lower optimizer.lr, lengthen the warm-up, lower "
        "clip_grad_norm.max_norm or compute in float32, then launch it anew",
    )


def _times(spent: int) -> str:
    if not spent:
        return "the run has not gone back"
    return f"the run has gone back {spent} time{'s' if spent > 1 else ''} already"


def _samples(rollback: Rollback | None) -> str:
    if rollback is None or not rollback.samples:
        return ""
    shown = ", ".join(map(str, rollback.samples[:8]))
    more = ", ..." if len(rollback.samples) > 8 else ""
    return f". Look at the samples {shown}{more} (step {rollback.last_step})"


def note_rollback(
    run_dir: RunDir, evidence: AttemptEvidence, decision: Decision, job_id: str
) -> Decision:
    """Write the rollback down if ``decision`` is to go back; without a record there is none."""
    rollback = evidence.rollback
    if decision.cause not in GOES_BACK or rollback is None:
        return decision
    if decision.action not in (Action.RESTART, Action.REQUEUE):
        return decision
    try:
        record_rollback(run_dir, rollback, job_id)
    except OSError as error:
        text = f"{decision.explanation}; {run_dir.skips} cannot be written: {error}"
        return Decision(decision.cause, Action.STOP, text)
    return decision


NEUTRAL = frozenset(
    {Cause.PREEMPTED, Cause.REQUEUED, Cause.TERMINATED, Cause.CANCELLED, Cause.PREFLIGHT}
)
"""Causes outside the run: they say nothing about whether it can make progress."""


def within_budgets(
    decision: Decision,
    evidence: AttemptEvidence,
    history: Sequence[Attempt],
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
    decision: Decision, history: Sequence[Attempt], limits: ResilienceConfig
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
        elif what not in NEUTRAL | GOES_BACK:
            idle += 1
    return idle


def vanished_in_a_row(history: Sequence[Attempt], limits: ResilienceConfig) -> Decision | None:
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
    return Decision(
        Cause.CRASH_LOOP,
        Action.STOP,
        f"{idle} attempts in a row without a new step, the last one: {last.explanation}; "
        f"{RESUME_HINT}",
    )


_SAID = {
    "PREEMPTION": Cause.PREEMPTED,
    "JOB REQUEUE": Cause.REQUEUED,
    "NODE FAILURE": Cause.NODE_LOST,
}
"""slurmstepd's words for why it ended a step."""
_USER_ERRORS = frozenset({"UserError", "ConfigError", "DataError", "ClusterError"})
_HOST_REASONS = frozenset(
    {F.GPU_XID, F.NCCL_ERROR, F.NETWORK_ERROR, F.FILESYSTEM, F.DATALOADER_WORKER}
)
"""Kinds of exceptions for which a host, a device or the network is to blame."""
_DETERMINISTIC = frozenset({"PermissionError", "FileNotFoundError", "NotADirectoryError"})
"""Exceptions that come again however often a rank is started."""


def decide(
    evidence: AttemptEvidence, history: Sequence[Attempt], limits: ResilienceConfig
) -> Decision:
    """Verdict on one attempt; ``history`` holds the earlier attempts of the same job.

    Order of trust: what every rank recorded; the user's cancel; who ended the job from outside; a
    rank's own failure; how processes ended. Exit codes alone never mean success.
    """
    decision = _verdict(evidence, history)
    if decision.action is Action.RESUBMIT and not limits.resubmit:
        text = f"{decision.explanation}; resilience.resubmit is false; {RESUME_HINT}"
        return Decision(decision.cause, Action.STOP, text)
    if decision.action not in (Action.RESTART, Action.REQUEUE, Action.RESUBMIT):
        return decision
    return within_budgets(decision, evidence, history, limits)


def _verdict(evidence: AttemptEvidence, history: Sequence[Attempt]) -> Decision:
    if evidence.all_finished:
        return Decision(Cause.FINISHED, Action.DONE, f"all {evidence.world_size} ranks finished")
    if evidence.cancel_requested:
        return Decision(Cause.CANCELLED, Action.STOP, f"cancelled by the user; {_saved(evidence)}")
    if evidence.terminated:
        return _ended_from_outside(evidence)
    if evidence.lost_nodes and evidence.stop_asked is None:
        return _node_lost(evidence)
    if evidence.host_memory_ran_out and evidence.diagnosis is not None:
        words = evidence.diagnosis.summary
        return _out_of_memory(Cause.HOST_OUT_OF_MEMORY, words, evidence, history)
    if evidence.hang is not None:
        return Decision(Cause.HUNG, Action.RESTART, evidence.hang.describe())
    culprit = next((one for one in evidence.failures if not one.victim), None)
    if culprit is not None:
        return _of_exception(culprit, evidence, history)
    if evidence.stopped or evidence.stop_asked is not None:
        return _stopped(evidence)
    return _of_process(evidence)


def _ended_from_outside(evidence: AttemptEvidence) -> Decision:
    """TERM reached the supervisor: the scheduler's view tells who sent it."""
    job, saved = evidence.job, _saved(evidence)
    if job is None and evidence.has_queue:
        cause = _SAID.get(evidence.ended_for or "", Cause.TERMINATED)
        return Decision(
            cause,
            Action.LEAVE,
            f"TERM came and Slurm does not answer, so it may bring the job back; {saved}",
        )
    if job is None:
        return Decision(
            Cause.TERMINATED, Action.STOP, f"TERM ended this run; {saved}; {RESUME_HINT}"
        )
    if job.restarts > evidence.restarts_before or job.pending:
        # A requeued job shows no PreemptTime any more; slurmstepd said why it ended the step.
        preempted = bool(job.preempted_at) or evidence.ended_for == "PREEMPTION"
        why = "preemption" if preempted else (evidence.ended_for or "it does not say why").lower()
        cause = (
            Cause.PREEMPTED if preempted else _SAID.get(evidence.ended_for or "", Cause.REQUEUED)
        )
        return Decision(cause, Action.LEAVE, f"Slurm requeued job {job.job_id} ({why}); {saved}")
    if job.preempted_at:
        # PreemptMode=CANCEL: with REQUEUE the job would count one restart more by now.
        return Decision(
            Cause.PREEMPTED,
            Action.RESUBMIT,
            f"Slurm preempted job {job.job_id} and does not requeue it; {saved}",
        )
    text = f"the time limit ended job {job.job_id} before it could requeue itself; {saved}"
    if job.reason == "TimeLimit" or job.state == "TIMEOUT":
        return Decision(Cause.TIME_LIMIT, Action.RESUBMIT, text)
    if evidence.remaining_s is not None and evidence.remaining_s <= 0:
        # Likely, but it may be a scancel just now, and that must stay final.
        return Decision(Cause.TIME_LIMIT, Action.STOP, f"{text}; {RESUME_HINT}")
    if job.state in ("COMPLETING", "CANCELLED"):
        return Decision(Cause.CANCELLED, Action.STOP, f"scancel ended job {job.job_id}; {saved}")
    return Decision(
        Cause.TERMINATED,
        Action.STOP,
        f"TERM reached the supervisor of job {job.job_id} ({job.state.lower()}); {saved}; "
        f"{RESUME_HINT}",
    )


def _node_lost(evidence: AttemptEvidence) -> Decision:
    """A node is gone for certain: whatever the ranks said is its consequence."""
    names = ", ".join(sign.node for sign in evidence.lost_nodes)
    step = f" at step {evidence.last_step}" if evidence.last_step is not None else ""
    text = f"{names} was lost{step} ({evidence.lost_nodes[0].sign})"
    return Decision(Cause.NODE_LOST, Action.RESTART, text)


def _stopped(evidence: AttemptEvidence) -> Decision:
    """The ranks were asked to save and stop, by us or by Slurm's warning signal."""
    job, saved = evidence.job, _saved(evidence)
    if job is not None and job.preempted_at and job.restarts == evidence.restarts_before:
        return Decision(Cause.PREEMPTED, Action.REQUEUE, f"Slurm announced a preemption; {saved}")
    if _ended_by_a_stray_signal(evidence):
        ranks = ", ".join(name_rank(rank, evidence.hosts) for rank in evidence.signalled)
        text = f"{ranks} got SIGTERM, and neither Slurm nor we sent it; {saved}"
        return Decision(Cause.TERMINATED, Action.RESTART, text)
    if evidence.stop_asked in (None, StopCause.TIME_LIMIT, StopCause.WARNED):
        return Decision(Cause.TIME_LIMIT, Action.REQUEUE, f"stopped for the time limit; {saved}")
    return Decision(Cause.TERMINATED, Action.STOP, f"stopped as asked; {saved}; {RESUME_HINT}")


def _ended_by_a_stray_signal(evidence: AttemptEvidence) -> bool:
    """Whether somebody signalled ranks while the job goes on and its limit is far."""
    job_goes_on = evidence.job is None or evidence.job.running
    early = evidence.remaining_s is not None and evidence.remaining_s > evidence.lead_s
    return bool(evidence.signalled) and evidence.stop_asked is None and job_goes_on and early


def _of_exception(
    failure: RankFailure, evidence: AttemptEvidence, history: Sequence[Attempt]
) -> Decision:
    """A rank's own account of an exception that is not the consequence of another's death."""
    text = describe_failure(failure)
    if failure.kind in _USER_ERRORS:
        return Decision(Cause.USER_ERROR, Action.STOP, text)
    if failure.kind == "CheckpointError":
        return Decision(Cause.CHECKPOINT_ERROR, Action.STOP, text)
    if failure.kind in ANOMALIES:
        return of_anomaly(failure.kind, text, evidence)
    if failure.kind == "FencedError":
        return Decision(Cause.FENCED, Action.STOP, text)
    if failure.reason is F.HOST_OOM:
        return _out_of_memory(Cause.HOST_OUT_OF_MEMORY, text, evidence, history)
    if failure.reason is F.CUDA_OOM or failure.kind == "OutOfMemoryError":
        return _out_of_memory(Cause.OUT_OF_MEMORY, text, evidence, history)
    if _blames_host(failure):
        return Decision(Cause.RANK_DIED, Action.RESTART, text)
    return Decision(Cause.PROGRAM_ERROR, Action.STOP, text)


def _blames_host(failure: RankFailure) -> bool:
    """Whether a rank started again may fare better: not where the program itself raised."""
    raised_in_worker = failure.message.startswith("Caught ")  # torch's prefix: not the worker died
    again = failure.kind in _DETERMINISTIC or raised_in_worker
    return failure.reason in _HOST_REASONS and not again


def _out_of_memory(
    cause: Cause, text: str, evidence: AttemptEvidence, history: Sequence[Attempt]
) -> Decision:
    """Memory may run out by chance (fragmentation, a neighbour); twice at one step it does not."""
    before = history[-1] if history else None
    if before is not None and before.cause is cause and before.last_step == evidence.last_step:
        advice = f"{text}; twice at the same step: {_MEMORY_ADVICE[cause]}"
        return Decision(cause, Action.STOP, advice)
    return Decision(cause, Action.RESTART, text)


_MEMORY_ADVICE = {
    Cause.OUT_OF_MEMORY: (
        "lower dataloader.batch_size or sequence length, "
        "or turn on training_optimizations.activation_checkpointing"
    ),
    Cause.HOST_OUT_OF_MEMORY: (
        "ask for more memory (slurm.mem), or use fewer loader workers (dataloader.num_workers)"
    ),
}


def _of_process(evidence: AttemptEvidence) -> Decision:
    """No rank explained itself: look at how the processes ended."""
    dead = [one for one in evidence.exits if one.died and _is_silent(one, evidence)]
    first = next((one for one in dead if not one.ours), None)
    if first is not None and first.rank in evidence.started:
        return Decision(Cause.RANK_DIED, Action.RESTART, describe_exit(first, evidence))
    if len(evidence.started) < evidence.world_size:
        if (refused := _container_refused(evidence)) is not None:
            return refused
        missing = sorted(set(range(evidence.world_size)) - evidence.started)
        detail = evidence.launcher_error or _codes(evidence)
        return Decision(
            Cause.LAUNCH_FAILED,
            Action.RESTART,
            f"{len(missing)} of {evidence.world_size} ranks never started (rank {missing[0]} "
            f"first): {detail}",
        )
    missing = sorted(set(range(evidence.world_size)) - evidence.finished)
    told = {failure.rank for failure in evidence.failures}
    silent = [rank for rank in missing if rank not in told]
    if evidence.failures:
        text = describe_failure(evidence.failures[0])
        what = "the network or a peer failed"
        if silent:
            what = f"{name_rank(silent[0], evidence.hosts)} ended without a word, its peers lost it"
        return Decision(Cause.RANK_DIED, Action.RESTART, f"{what}: {text}")
    return Decision(
        Cause.RANK_DIED,
        Action.RESTART,
        f"{name_rank(missing[0], evidence.hosts)} ended without recording its finish "
        f"({_codes(evidence)})",
    )


def _container_refused(evidence: AttemptEvidence) -> Decision | None:
    """The runtime said what is missing: everywhere, it comes again; on one node, others may do."""
    found = evidence.diagnosis
    if found is None or found.kind is not F.CONTAINER_ERROR:
        return None
    if found.evidence[0].trust < Trust.CAUSE:  # a registry that did not answer may do so later
        return None
    refused = refused_exits(evidence)
    hosts = ", ".join(sorted({one.host for one in refused if one.host}))
    text = f"{hosts + ': ' if hosts else ''}{found.summary}; {found.remedy.text}"
    some = 0 < len(refused) < evidence.world_size
    return Decision(Cause.CONTAINER_ERROR, Action.RESTART if some else Action.STOP, text)


def _is_silent(one: RankExit, evidence: AttemptEvidence) -> bool:
    """Whether a rank died without a word: a victim of another's death writes a record first."""
    return all(failure.rank != one.rank for failure in evidence.failures)


def _codes(evidence: AttemptEvidence) -> str:
    codes = ", ".join(f"{one.rank}: {one.code}" for one in evidence.exits[:8])
    launcher = evidence.launcher_code
    return f"exit codes {{{codes}}}" if launcher is None else f"srun exited {launcher}"


def _saved(evidence: AttemptEvidence) -> str:
    if evidence.all_stopped:
        return f"saved at step {evidence.last_step}"
    if evidence.last_step is None:
        return "no step was recorded"
    return f"the last recorded step is {evidence.last_step}; not every rank confirmed the save"
