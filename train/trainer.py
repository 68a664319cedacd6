"""The training loop: from wherever the run stands to its last step, or to an agreed stop.

Between a step's gradients and its update: judge it, record what is wrong, go back if need be.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from submitrain.config import RunConfig
from submitrain.errors import LossSpikeError, NotFiniteError
from submitrain.events import Kind, Phase
from submitrain.processes import StopReason
from submitrain.train import faults
from submitrain.train.callbacks.anomaly import (
    MEMORY_KEY,
    Judgement,
    Memory,
    Observed,
    Place,
    Verdict,
    judge,
)
from submitrain.train.callbacks.autosave import AutoSave
from submitrain.train.callbacks.journal import Journal, StepTimes
from submitrain.train.checkpoint.checkpointer import Checkpointer
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.context import RankContext
from submitrain.train.data.batch import MicroBatch
from submitrain.train.data.training import TrainingData
from submitrain.train.distributed.groups import World
from submitrain.train.optim import LearningRate
from submitrain.train.step import Agreement, Stepper, StepResult, agree, reseed, validate

MAX_SAMPLES = 64
"""Ids of samples in an event about a step that went wrong."""


@dataclass
class StepGuard:
    """Watches over one step; its verdict is the same on every rank, without asking in good times.

    ``judgement`` holds what came of it, once ``admits`` was called.
    """

    config: RunConfig
    stepper: Stepper
    journal: Journal
    memory: Memory
    place: Place
    batches: Sequence[MicroBatch]
    judgement: Judgement = field(init=False)

    def __post_init__(self) -> None:
        self.judgement = Judgement(Verdict.APPLY, self.memory)

    @property
    def applied(self) -> bool:
        """Whether the update was made."""
        return self.judgement.verdict in (Verdict.APPLY, Verdict.WARN)

    def admits(self, result: StepResult) -> bool:
        """Whether the update of this step may be made; all ranks call it.

        Raises:
            NotFiniteError, LossSpikeError: the run has to go back; on all ranks alike.
        """
        seen = Observed(self.place, result.loss, result.grad_norm)
        if not seen.finite:
            seen = replace(seen, weights_finite=self.stepper.weights_finite())
        limits, warmup_steps = self.config.resilience, self.config.warmup_steps
        self.judgement = judge(self.memory, seen, limits, warmup_steps=warmup_steps)
        if self.judgement.what:
            self.journal.anomaly(self.judgement, seen, self._samples())
        if self.judgement.verdict is Verdict.ROLLBACK:
            kind = LossSpikeError if self.judgement.what == "loss_spike" else NotFiniteError
            raise kind(_explain(self.judgement, seen, self.config))
        return self.applied

    def _samples(self) -> list[int]:
        """Samples of this step on all ranks, the first of them; a collective."""
        mine = [i for batch in self.batches for i in batch.doc_ids][:MAX_SAMPLES]
        world = self.stepper.world
        shares: list[list[int]] = [[] for _ in range(world.size)]
        dist.all_gather_object(shares, mine, group=world.control)
        return sorted(i for share in shares for i in share)[:MAX_SAMPLES]


def _explain(judgement: Judgement, seen: Observed, config: RunConfig) -> str:
    limits, steps = config.resilience, [place.step for place in judgement.undone]
    why = {
        "not_finite": f"{len(judgement.memory.left_out)} of the last "
        f"{limits.anomaly_window_steps} steps had to be left out, resilience.max_skipped_steps "
        f"allows {limits.max_skipped_steps}",
        "weights_not_finite": "the weights themselves are not finite: the last update broke them",
        "loss_spike": f"{judgement.z or 0.0:.1f} robust standard deviations above the usual",
    }[judgement.what]
    return (
        f"step {seen.place.step}: loss {seen.loss}, gradient norm {seen.grad_norm}; the optimizer "
        f"was not run; {why}; steps {min(steps)} to {max(steps)} consumed the positions "
        f"{judgement.skips.text}"
    )


@dataclass
class Training:
    """Everything that a loop needs, ready to go on from ``state``."""

    context: RankContext
    config: RunConfig
    world: World
    data: TrainingData
    stepper: Stepper
    schedule: LearningRate
    journal: Journal
    checkpointer: Checkpointer | None
    """None when the configuration turned checkpoints off."""
    state: TrainState
    autosave: AutoSave | None = None
    """Rank 0's, where the interval between checkpoints is automatic."""
    memory: Memory = field(default_factory=Memory)
    """What is remembered of earlier steps' losses and of steps without an update."""
    validated: int = -1
    """Step of the newest validation in this attempt."""


def run(training: Training) -> StopReason:
    """Train to the end and return NONE, or stop early where all ranks agreed, and return why.

    Either way the last finished step is saved when this returns.

    Raises:
        NotFiniteError: too many steps were not finite; nothing of them was applied.
        LossSpikeError: the loss rose far above the usual, and the run is to go back.
        FencedError: a newer attempt owns the run folder.
    """
    try:
        reason = _steps(training)
    except (NotFiniteError, LossSpikeError):
        if training.checkpointer is not None:
            training.checkpointer.wait()  # the run may be about to go back to this one
        raise
    if not reason:
        _save(training, wait=False)
        _validate(training)
    _save(training, wait=True)
    return reason


def _steps(training: Training) -> StopReason:
    """Every step that is left, or those up to an agreed stop."""
    reason = StopReason.NONE
    for batches, waited_s in _steps_to_do(training):
        wish = training.autosave is not None and training.autosave.wants()
        agreed = agree(batches, training.context.stop.reason, training.world, save=wish)
        training.context.mark()
        if reason := agreed.stop:
            break
        _advance(training, batches, agreed, waited_s)
        _save_if_due(training, agreed, waited_s)
        if _due(training, training.config.step_scheduler.val_every_steps):
            _validate(training)
    return reason


def _steps_to_do(training: Training) -> Iterator[tuple[list[MicroBatch], float]]:
    """Micro-batches of this rank for every step that is left, and the seconds they took to come."""
    left = training.data.total_steps - training.state.step
    if left <= 0:
        return
    training.context.enter(Phase.FIRST_STEP)
    faults.at(faults.Moment.FIRST_STEP)
    stream = training.data.step_batches(training.state.position)
    for _ in range(left):
        began = time.monotonic()
        batches = next(stream)
        training.context.mark()
        yield batches, time.monotonic() - began
        training.context.enter(Phase.STEP)


def _advance(
    training: Training, batches: list[MicroBatch], agreed: Agreement, waited_s: float
) -> None:
    """One optimizer step, and its record."""
    began = time.monotonic()
    before = training.state
    reseed(training.config.seed, before.step, training.world.rank)
    rate = training.schedule.set(training.stepper.optimizer, before.step)
    after = _after(training, agreed)
    guard = _guard(training, after, batches)
    result = training.stepper.compute(batches, agreed.label_tokens, guard.admits)
    training.state, training.memory = after, guard.judgement.memory
    training.context.step = training.state.step
    times = StepTimes(step_s=waited_s + time.monotonic() - began, data_wait_s=waited_s)
    if guard.applied:
        training.journal.step(training.state, result, agreed, rate=rate, times=times)
    training.journal.samples(training.state.step, batches)
    if training.state.epochs_done > before.epochs_done:
        faults.at(faults.Moment.EPOCH_END)


def _guard(training: Training, after: TrainState, batches: list[MicroBatch]) -> StepGuard:
    return StepGuard(
        training.config,
        training.stepper,
        training.journal,
        training.memory,
        Place(after.step, training.state.position, after.position),
        batches,
    )


def _after(training: Training, agreed: Agreement) -> TrainState:
    before = training.state
    return replace(
        before,
        step=before.step + 1,
        position=training.data.next_position(before.position),
        tokens=before.tokens + agreed.tokens,
        label_tokens=before.label_tokens + agreed.label_tokens,
    )


def _due(training: Training, every: int | None) -> bool:
    """Whether this is one of every so many steps; the last step is dealt with after the loop."""
    step = training.state.step
    return every is not None and step % every == 0 and step < training.data.total_steps


def _save_if_due(training: Training, agreed: Agreement, waited_s: float) -> None:
    """Save after so many steps, or where rank 0 wished it."""
    every, auto = training.config.step_scheduler.ckpt_every_steps, training.autosave
    if auto is not None:
        auto.stepped(waited_s)
    if _due(training, 1) and agreed.save if every == "auto" else _due(training, every):
        _save(training, wait=False)
        if auto is not None:
            auto.saved()


def _save(training: Training, *, wait: bool) -> None:
    """Save the finished steps; step 0 needs no checkpoint, and none is written twice."""
    if training.checkpointer is None or training.state.step == 0:
        return
    training.context.enter(Phase.SAVE)
    extra = {**training.state.extra, MEMORY_KEY: training.memory.text()}
    state = replace(training.state, extra=extra)
    training.checkpointer.save(
        training.stepper.model.module, training.stepper.optimizer, state, wait=wait
    )


def _validate(training: Training) -> None:
    """Validation loss at this step, unless it is known already; a stop request cuts it short."""
    passes, step = training.data.validation, training.state.step
    if passes is None or training.validated == step:
        return
    training.context.enter(Phase.VALIDATE)
    faults.at(faults.Moment.VALIDATE)
    began = time.monotonic()
    result = validate(
        training.stepper.model,
        passes.batches(),
        training.world,
        interrupted=lambda: _anyone_stops(training),
    )
    if result is not None:
        training.validated = step
        training.journal.validation(step, result, val_s=time.monotonic() - began)


def _anyone_stops(training: Training) -> bool:
    """Whether any rank was asked to stop; the same answer on all of them."""
    flag = torch.tensor(int(training.context.stop.reason))
    dist.all_reduce(flag, dist.ReduceOp.MAX, group=training.world.control)
    training.context.mark()
    return bool(flag.item())


def record_stop(training: Training, reason: StopReason) -> None:
    """Write down that this rank saved and stopped as asked."""
    training.context.events.write(
        Kind.STOPPED,
        step=training.state.step,
        reason=reason.name.lower(),
        signalled=training.context.stop.reason is StopReason.TERMINATED,
    )
