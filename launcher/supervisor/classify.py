"""Why an attempt ended, and which action that asks for: from its evidence alone. Pure.

Budgets and nodes have their say in ``launcher.supervisor.decide``.
"""

from __future__ import annotations

import signal
from collections.abc import Sequence

from submitrain.attempts import RESUME_HINT, Action, Attempt, Cause, Decision
from submitrain.launcher.supervisor.evidence import (
    AttemptEvidence,
    RankExit,
    RankFailure,
    StopCause,
)
from submitrain.monitor.diagnose import FailureClass as F
from submitrain.monitor.diagnose import Trust
from submitrain.rollbacks import Skips

ANOMALIES = {"NotFiniteError": Cause.NOT_FINITE, "LossSpikeError": Cause.LOSS_SPIKE}
"""Causes that go back, by the exception that a rank ended with."""
_STEP_ENDED_FOR = {
    "PREEMPTION": Cause.PREEMPTED,
    "JOB REQUEUE": Cause.REQUEUED,
    "NODE FAILURE": Cause.NODE_LOST,
}
"""slurmstepd's words for why it ended a step."""
_FINAL_EXCEPTIONS = {
    **dict.fromkeys(("UserError", "ConfigError", "DataError", "ClusterError"), Cause.USER_ERROR),
    "CheckpointError": Cause.CHECKPOINT_ERROR,
    "FencedError": Cause.FENCED,
}
_HOST_REASONS = frozenset(
    {F.GPU_XID, F.NCCL_ERROR, F.NETWORK_ERROR, F.FILESYSTEM, F.DATALOADER_WORKER}
)
"""Kinds of exceptions for which a host, a device or the network is to blame."""
_DETERMINISTIC = frozenset({"PermissionError", "FileNotFoundError", "NotADirectoryError"})
"""Exceptions that come again however often a rank is started."""
_MEMORY_ADVICE = {
    Cause.OUT_OF_MEMORY: (
        "lower dataloader.batch_size or sequence length, "
        "or turn on training_optimizations.activation_checkpointing"
    ),
    Cause.HOST_OUT_OF_MEMORY: (
        "ask for more memory (slurm.mem), or use fewer loader workers (dataloader.num_workers)"
    ),
}


def classify(evidence: AttemptEvidence, history: Sequence[Attempt]) -> Decision:
    """The cause, the action that it asks for, and why; the strongest evidence first.

    Order of trust: what every rank recorded; the user's cancel; who ended the job from outside; a
    rank's own failure; how processes ended. Exit codes alone never mean success.
    """
    if evidence.all_finished:
        return Decision(Cause.FINISHED, Action.DONE, f"all {evidence.world_size} ranks finished")
    if evidence.cancel_requested:
        text = f"cancelled by the user; {_saved(evidence)}"
        return Decision(Cause.CANCELLED, Action.STOP, text)
    if evidence.terminated:
        return _ended_from_outside(evidence)
    if evidence.lost_nodes and evidence.stop_asked is None:
        # Whatever the ranks said is its consequence.
        names, sign = ", ".join(evidence.lost_nodes), next(iter(evidence.lost_nodes.values()))
        step = f" at step {evidence.last_step}" if evidence.last_step is not None else ""
        return Decision(Cause.NODE_LOST, Action.RESTART, f"{names} was lost{step} ({sign})")
    if evidence.host_memory_ran_out and evidence.diagnosis is not None:
        text = evidence.diagnosis.summary
        return _out_of_memory(Cause.HOST_OUT_OF_MEMORY, text, evidence, history)
    if evidence.hang is not None:
        return Decision(Cause.HUNG, Action.RESTART, evidence.hang.describe())
    if (culprit := evidence.own_failure) is not None:
        return _raised(culprit, evidence, history)
    if evidence.stopped or evidence.stop_asked is not None:
        return _stopped(evidence)
    return _died_silently(evidence)


def _ended_from_outside(evidence: AttemptEvidence) -> Decision:
    """TERM reached the supervisor: the scheduler's view tells who sent it."""
    job, saved, said = evidence.job, _saved(evidence), evidence.ended_for or ""
    if job is None and evidence.has_queue:
        text = f"TERM came and Slurm does not answer, so it may bring the job back; {saved}"
        return Decision(_STEP_ENDED_FOR.get(said, Cause.TERMINATED), Action.LEAVE, text)
    if job is None:
        text = f"TERM ended this run; {saved}; {RESUME_HINT}"
        return Decision(Cause.TERMINATED, Action.STOP, text)
    if job.restarts > evidence.restarts_before or job.pending:
        # A requeued job shows no PreemptTime any more; slurmstepd said why it ended the step.
        preempted = bool(job.preempted_at) or said == "PREEMPTION"
        why = "preemption" if preempted else (said or "it does not say why").lower()
        cause = Cause.PREEMPTED if preempted else _STEP_ENDED_FOR.get(said, Cause.REQUEUED)
        return Decision(cause, Action.LEAVE, f"Slurm requeued job {job.job_id} ({why}); {saved}")
    if job.preempted_at:
        # PreemptMode=CANCEL: with REQUEUE the job would count one restart more by now.
        text = f"Slurm preempted job {job.job_id} and does not requeue it; {saved}"
        return Decision(Cause.PREEMPTED, Action.RESUBMIT, text)
    text = f"the time limit ended job {job.job_id} before it could requeue itself; {saved}"
    if job.reason == "TimeLimit" or job.state == "TIMEOUT":
        return Decision(Cause.TIME_LIMIT, Action.RESUBMIT, text)
    if evidence.remaining_s is not None and evidence.remaining_s <= 0:
        # Likely, but it may be a scancel just now, and that must stay final.
        return Decision(Cause.TIME_LIMIT, Action.STOP, f"{text}; {RESUME_HINT}")
    if job.state in ("COMPLETING", "CANCELLED"):
        return Decision(Cause.CANCELLED, Action.STOP, f"scancel ended job {job.job_id}; {saved}")
    text = f"TERM reached the supervisor of job {job.job_id} ({job.state.lower()}); {saved}"
    return Decision(Cause.TERMINATED, Action.STOP, f"{text}; {RESUME_HINT}")


def _stopped(evidence: AttemptEvidence) -> Decision:
    """The ranks were asked to save and stop, by us or by Slurm's warning signal."""
    job, saved, remaining_s = evidence.job, _saved(evidence), evidence.remaining_s
    if job is not None and job.preempted_at and job.restarts == evidence.restarts_before:
        return Decision(Cause.PREEMPTED, Action.REQUEUE, f"Slurm announced a preemption; {saved}")
    job_goes_on = job is None or job.running
    early = remaining_s is not None and remaining_s > evidence.lead_s
    if evidence.signalled and evidence.stop_asked is None and job_goes_on and early:
        ranks = ", ".join(_name(rank, evidence) for rank in evidence.signalled)
        text = f"{ranks} got SIGTERM, and neither Slurm nor we sent it; {saved}"
        return Decision(Cause.TERMINATED, Action.RESTART, text)
    if evidence.stop_asked in (None, StopCause.TIME_LIMIT, StopCause.WARNED):
        return Decision(Cause.TIME_LIMIT, Action.REQUEUE, f"stopped for the time limit; {saved}")
    return Decision(Cause.TERMINATED, Action.STOP, f"stopped as asked; {saved}; {RESUME_HINT}")


def _raised(
    failure: RankFailure, evidence: AttemptEvidence, history: Sequence[Attempt]
) -> Decision:
    """A rank's own account of an exception that is not the consequence of another's death."""
    text = describe_failure(failure)
    if (cause := _FINAL_EXCEPTIONS.get(failure.kind)) is not None:
        return Decision(cause, Action.STOP, text)
    if (cause := ANOMALIES.get(failure.kind)) is not None:
        if (rollback := evidence.rollback) is None:
            return Decision(cause, Action.STOP, f"{text}; the ranks named no data to leave out")
        text += (
            f"; going back to before step {rollback.first_step}, without the positions "
            f"{Skips.of(rollback.windows).text}"
        )
        return Decision(cause, Action.RESTART, text)
    if failure.reason is F.HOST_OOM:
        return _out_of_memory(Cause.HOST_OUT_OF_MEMORY, text, evidence, history)
    if failure.reason is F.CUDA_OOM or failure.kind == "OutOfMemoryError":
        return _out_of_memory(Cause.OUT_OF_MEMORY, text, evidence, history)
    # "Caught" is torch's prefix: the worker's program raised, the worker did not die.
    again = failure.kind in _DETERMINISTIC or failure.message.startswith("Caught ")
    if failure.reason in _HOST_REASONS and not again:
        return Decision(Cause.RANK_DIED, Action.RESTART, text)
    return Decision(Cause.PROGRAM_ERROR, Action.STOP, text)


def _out_of_memory(
    cause: Cause, text: str, evidence: AttemptEvidence, history: Sequence[Attempt]
) -> Decision:
    """Memory may run out by chance (fragmentation, a neighbour); twice at one step it does not."""
    before = history[-1] if history else None
    if before is not None and before.cause is cause and before.last_step == evidence.last_step:
        advice = f"{text}; twice at the same step: {_MEMORY_ADVICE[cause]}"
        return Decision(cause, Action.STOP, advice)
    return Decision(cause, Action.RESTART, text)


def _died_silently(evidence: AttemptEvidence) -> Decision:
    """No rank explained itself: look at how the processes ended."""
    first = evidence.unexplained_exit
    if first is not None and first.rank in evidence.started:
        return Decision(Cause.RANK_DIED, Action.RESTART, _describe_exit(first, evidence))
    codes = ", ".join(f"{one.rank}: {one.code}" for one in evidence.exits[:8])
    launcher = evidence.launcher_code
    detail = f"exit codes {{{codes}}}" if launcher is None else f"srun exited {launcher}"
    everyone = set(range(evidence.world_size))
    if missing := sorted(everyone - evidence.started):
        if (refused := _container_refused(evidence)) is not None:
            return refused
        text = (
            f"{len(missing)} of {evidence.world_size} ranks never started (rank {missing[0]} "
            f"first): {evidence.launcher_error or detail}"
        )
        return Decision(Cause.LAUNCH_FAILED, Action.RESTART, text)
    missing = sorted(everyone - evidence.finished)
    if not evidence.failures:
        text = f"{_name(missing[0], evidence)} ended without recording its finish ({detail})"
        return Decision(Cause.RANK_DIED, Action.RESTART, text)
    told = {failure.rank for failure in evidence.failures}
    silent = [rank for rank in missing if rank not in told]
    what = "the network or a peer failed"
    if silent:
        what = f"{_name(silent[0], evidence)} ended without a word, its peers lost it"
    text = f"{what}: {describe_failure(evidence.failures[0])}"
    return Decision(Cause.RANK_DIED, Action.RESTART, text)


def _container_refused(evidence: AttemptEvidence) -> Decision | None:
    """The runtime said what is missing: everywhere, it comes again; on one node, others may do."""
    found = evidence.diagnosis
    if found is None or found.kind is not F.CONTAINER_ERROR:
        return None
    if found.evidence[0].trust < Trust.CAUSE:  # a registry that did not answer may do so later
        return None
    refused = evidence.refused_exits
    hosts = ", ".join(sorted({one.host for one in refused if one.host}))
    text = f"{hosts + ': ' if hosts else ''}{found.summary}; {found.remedy.text}"
    some = 0 < len(refused) < evidence.world_size
    return Decision(Cause.CONTAINER_ERROR, Action.RESTART if some else Action.STOP, text)


def _saved(evidence: AttemptEvidence) -> str:
    if evidence.all_stopped:
        return f"saved at step {evidence.last_step}"
    if evidence.last_step is None:
        return "no step was recorded"
    return f"the last recorded step is {evidence.last_step}; not every rank confirmed the save"


def _name(rank: int, evidence: AttemptEvidence) -> str:
    """``rank 3 (node2)``."""
    host = evidence.hosts.get(rank)
    return f"rank {rank} ({host})" if host else f"rank {rank}"


def describe_failure(failure: RankFailure) -> str:
    """``rank 3 (node2) raised ValueError at step 17 (train/trainer.py:80): message``."""
    host = f" ({failure.host})" if failure.host else ""
    where = f" ({failure.where})" if failure.where else ""
    first_line = failure.message.strip().partition("\n")[0]
    return (
        f"rank {failure.rank}{host} raised {failure.exception} at step {failure.step} in phase "
        f"{failure.phase}{where}: {first_line}"
    )


def _describe_exit(one: RankExit, evidence: AttemptEvidence) -> str:
    """``rank 1 (node2) was killed by SIGKILL at step 10``, or ``exited with code 3``."""
    host = f" ({one.host})" if one.host else ""
    step = f" at step {evidence.last_step}" if evidence.last_step is not None else ""
    if evidence.first_step is None and not evidence.last_step:
        step = " before its first step"
    how = f"exited with code {one.code}"
    if one.code < 0:
        try:
            how = f"was killed by {signal.Signals(-one.code).name}"
        except ValueError:
            how = f"was killed by signal {-one.code}"
    if one.code == -signal.SIGKILL:
        how += " (the kernel does this when memory runs out)"
    return f"rank {one.rank}{host} {how}{step}"
