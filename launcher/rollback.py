"""Going back after steps that were not finite, or a loss spike: whether, where to, and the record.

The ranks find the trouble and name the data; the supervisor decides here whether to go back, and
writes that down before the next attempt starts. Pure but for ``note_rollback``.
"""

from __future__ import annotations

from collections.abc import Sequence

from launcher.attempts import AttemptRecord
from launcher.evidence import AttemptEvidence
from launcher.outcome import Action, Cause, Decision
from train.config.job import ResilienceConfig
from train.rollback import Rollback, record_rollback
from train.rundir import RunDir
from train.skips import Skips

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
    history: Sequence[AttemptRecord],
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
