"""The training loop: ``Trainer.train`` and, for one optimizer step, ``Trainer.train_step``.

Forward, backward and the optimizer's update are in ``train.step``.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist

from submitrain.config import RunConfig
from submitrain.errors import LossSpikeError, NotFiniteError
from submitrain.events import Phase
from submitrain.signals import StopReason
from submitrain.train import faults
from submitrain.train.callbacks.anomaly import (
    HISTORY_KEY,
    AnomalyAction,
    AnomalyHistory,
    AnomalyResult,
    ObservedStep,
    StepSpan,
    check_step,
)
from submitrain.train.callbacks.autosave import AutoSave
from submitrain.train.callbacks.journal import Journal
from submitrain.train.checkpoint.checkpointer import Checkpointer
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.context import RankContext
from submitrain.train.data.batch import MicroBatch
from submitrain.train.data.training import TrainingData
from submitrain.train.distributed.groups import World
from submitrain.train.optim import LearningRate
from submitrain.train.step import Agreement, Stepper, StepResult, agree, reseed, validate

MAX_SAMPLES = 64
"""Ids of samples in an event about an anomaly."""


@dataclass
class Trainer:
    """Everything that the loop needs, ready to go on from ``state``."""

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
    history: AnomalyHistory = field(default_factory=AnomalyHistory)
    validated_step: int = -1
    """Step of the newest validation in this attempt."""

    def train(self) -> StopReason:
        """Train to the end and return NONE, or stop early where all ranks agreed, and return why.

        Either way the last finished step is saved when this returns, unless checkpoints are off.

        Raises:
            NotFiniteError: too many steps, or the weights, were not finite.
            LossSpikeError: the loss rose far above the usual, and the run is to go back.
            FencedError: a newer attempt owns the run folder.
        """
        last_step = self.data.total_steps
        if self.state.step < last_step:
            self.context.enter(Phase.FIRST_STEP)
            faults.at(faults.Moment.FIRST_STEP)
        stop = StopReason.NONE
        with closing(self.data.step_batches(self.state.position)) as batches_of_steps:
            while self.state.step < last_step:
                began = time.monotonic()
                batches = next(batches_of_steps)
                self.context.mark()
                data_wait_s = time.monotonic() - began

                save_wanted = self.autosave is not None and self.autosave.wants()
                reason = self.context.stop.reason
                agreed = agree(batches, reason, self.world, save=save_wanted)
                self.context.mark()
                if stop := agreed.stop:
                    break
                self.train_step(batches, agreed, data_wait_s)

                if self.autosave is not None:
                    self.autosave.stepped(data_wait_s)
                if self._save_due(agreed):
                    self._save(wait=False)
                    if self.autosave is not None:
                        self.autosave.saved()
                if self._due(self.config.step_scheduler.val_every_steps):
                    self._validate()
                self.context.enter(Phase.STEP)
        if not stop:
            self._save(wait=False)
            self._validate()
        self._save(wait=True)
        return stop

    def train_step(
        self, batches: Sequence[MicroBatch], agreed: Agreement, data_wait_s: float
    ) -> None:
        """One optimizer step, and its record; an anomaly may forbid the update."""
        began = time.monotonic()
        before = self.state
        after = replace(
            before,
            step=before.step + 1,
            position=self.data.next_position(before.position),
            tokens=before.tokens + agreed.tokens,
            label_tokens=before.label_tokens + agreed.label_tokens,
        )
        reseed(self.config.seed, before.step, self.world.rank)
        lr = self.schedule.set(self.stepper.optimizer, before.step)
        result = self.stepper.forward_backward(batches, agreed.label_tokens)
        span = StepSpan(after.step, before.position, after.position)
        checked = self._check(span, result, batches)
        if checked.should_apply:
            self.stepper.optimizer_step(result.grad_norm)
        self.stepper.clear_gradients()

        self.state, self.history = after, checked.history
        self.context.step = after.step
        if checked.should_apply:
            step_s = data_wait_s + time.monotonic() - began
            self.journal.step(after, result, agreed, lr=lr, step_s=step_s, data_wait_s=data_wait_s)
        self.journal.samples(after.step, batches)
        if after.epochs_done > before.epochs_done:
            faults.at(faults.Moment.EPOCH_END)

    def _check(
        self, span: StepSpan, result: StepResult, batches: Sequence[MicroBatch]
    ) -> AnomalyResult:
        """Check the step before its update; the same result on all ranks, which all call this.

        Raises:
            NotFiniteError, LossSpikeError: the run has to go back; on all ranks alike.
        """
        seen = ObservedStep(span, result.loss, result.grad_norm)
        if not seen.finite:
            seen = replace(seen, weights_finite=self.stepper.weights_finite())
        limits, warmup_steps = self.config.resilience, self.config.warmup_steps
        checked = check_step(self.history, seen, limits, warmup_steps=warmup_steps)
        if checked.what:
            mine = [i for batch in batches for i in batch.doc_ids][:MAX_SAMPLES]
            shares: list[list[int]] = [[] for _ in range(self.world.size)]
            dist.all_gather_object(shares, mine, group=self.world.control)
            samples = sorted(i for share in shares for i in share)[:MAX_SAMPLES]
            self.journal.anomaly(checked, seen, samples)
        if checked.action is AnomalyAction.ROLLBACK:
            if self.checkpointer is not None:
                self.checkpointer.wait()  # the run may be about to go back to this one
            kind = LossSpikeError if checked.what == "loss_spike" else NotFiniteError
            raise kind(_explain(checked, seen, self.config))
        return checked

    def _due(self, every: int | None) -> bool:
        """Whether ``every`` divides this step; the last step is handled after the loop."""
        step = self.state.step
        return every is not None and step % every == 0 and step < self.data.total_steps

    def _save_due(self, agreed: Agreement) -> bool:
        every = self.config.step_scheduler.ckpt_every_steps
        return (
            self.state.step < self.data.total_steps and agreed.save
            if every == "auto"
            else self._due(every)
        )

    def _save(self, *, wait: bool) -> None:
        """Save the finished steps; step 0 needs no checkpoint, and none is written twice."""
        if self.checkpointer is None or self.state.step == 0:
            return
        self.context.enter(Phase.SAVE)
        state = replace(self.state, extra={**self.state.extra, HISTORY_KEY: self.history.text()})
        model, optimizer = self.stepper.model.module, self.stepper.optimizer
        self.checkpointer.save(model, optimizer, state, wait=wait)

    def _validate(self) -> None:
        """Validation loss at this step, unless it is known; a stop request cuts it short."""
        passes, step = self.data.validation, self.state.step
        if passes is None or self.validated_step == step:
            return
        self.context.enter(Phase.VALIDATE)
        faults.at(faults.Moment.VALIDATE)
        began = time.monotonic()
        result = validate(self.stepper.model, passes.batches(), self.world, self._any_rank_stops)
        if result is not None:
            self.validated_step = step
            self.journal.validation(step, result, val_s=time.monotonic() - began)

    def _any_rank_stops(self) -> bool:
        """Whether any rank was asked to stop; the same answer on all of them."""
        flag = torch.tensor(int(self.context.stop.reason))
        dist.all_reduce(flag, dist.ReduceOp.MAX, group=self.world.control)
        self.context.mark()
        return bool(flag.item())


def _explain(checked: AnomalyResult, seen: ObservedStep, config: RunConfig) -> str:
    limits, steps = config.resilience, [span.step for span in checked.undone]
    why = {
        "not_finite": f"{len(checked.history.left_out)} of the last "
        f"{limits.anomaly_window_steps} steps had to be left out, resilience.max_skipped_steps "
        f"allows {limits.max_skipped_steps}",
        "weights_not_finite": "the weights themselves are not finite: the last update broke them",
        "loss_spike": f"{checked.z or 0.0:.1f} robust standard deviations above the usual",
    }[checked.what]
    return (
        f"step {seen.span.step}: loss {seen.loss}, gradient norm {seen.grad_norm}; the optimizer "
        f"was not run; {why}; steps {min(steps)} to {max(steps)} consumed the positions "
        f"{checked.skips.text}"
    )
