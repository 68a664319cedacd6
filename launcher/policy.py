"""What became of an attempt, and what follows: a pure function of recorded facts.

``decide(evidence, history, limits)`` reads like the table of outcomes in the architecture notes,
from the strongest evidence to the weakest. It asks nobody and touches nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.attempts import AttemptRecord
from launcher.budgets import within_budgets
from launcher.describe import describe_exit, describe_failure, name_rank
from launcher.evidence import AttemptEvidence, RankExit, RankFailure, StopCause, refused_exits
from launcher.outcome import RESUME_HINT, Action, Cause, Decision
from launcher.rollback import ANOMALIES, of_anomaly
from monitor.diagnose import FailureClass as F
from monitor.diagnose import Trust
from train.config.sections import ResilienceConfig

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
    evidence: AttemptEvidence, history: Sequence[AttemptRecord], limits: ResilienceConfig
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


def _verdict(evidence: AttemptEvidence, history: Sequence[AttemptRecord]) -> Decision:
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
    failure: RankFailure, evidence: AttemptEvidence, history: Sequence[AttemptRecord]
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
    cause: Cause, text: str, evidence: AttemptEvidence, history: Sequence[AttemptRecord]
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
