"""The training loop: from wherever the run stands to its last step, or to an agreed stop."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from train import faults
from train.anomaly import MEMORY_KEY, Memory, Place
from train.autosave import AutoSave
from train.checkpoint.checkpointer import Checkpointer
from train.checkpoint.state import TrainState
from train.config import RunConfig
from train.context import RankContext
from train.data.batch import MicroBatch
from train.data.training import TrainingData
from train.dist import World
from train.errors import LossSpikeError, NotFiniteError
from train.events import Kind, Phase
from train.guard import StepGuard
from train.journal import Journal, StepTimes
from train.optim import LearningRate
from train.step import Agreement, Stepper, agree, reseed
from train.stop import StopReason
from train.validate import validate


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
