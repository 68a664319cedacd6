"""The parts of an optimizer step: agree on its size, forward and backward, clip and update.

``train.trainer`` calls them in order.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from submitrain.signals import StopReason
from submitrain.train import faults
from submitrain.train.data.batch import MicroBatch
from submitrain.train.distributed.groups import World
from submitrain.train.model.loss import LanguageModel
from submitrain.train.model.shard import ShardPolicy, free_full_parameters, sharded_units
from submitrain.train.model.weights import seed_of
from submitrain.train.optim import local_shards, scale, sum_of_squares


@dataclass(frozen=True)
class Agreement:
    """What all ranks know before they compute a step; the same on each."""

    label_tokens: int
    tokens: int
    pairs: int
    """Sum of the squared document lengths: what attention has to compute."""
    stop: StopReason
    """The strongest reason to stop that any rank has seen."""
    save: bool = False
    """Whether to save after this step, where rank 0 decides that (``train.callbacks.autosave``)."""


def agree(
    batches: Sequence[MicroBatch], reason: StopReason, world: World, *, save: bool = False
) -> Agreement:
    """Sum up the step's tokens over all ranks; the stop flag rides along in the same all-reduce.

    So does ``save``: any rank's wish (rank 0's) makes all of them save after this step.
    """
    sizes = [
        sum(b.label_tokens for b in batches),
        sum(b.tokens for b in batches),
        sum(int(torch.diff(b.cu_seqlens).long().square().sum()) for b in batches if b.tokens),
    ]
    reasons = [int(reason is possible) for possible in StopReason]
    vote = torch.tensor([*sizes, int(save), *reasons], dtype=torch.int64)
    dist.all_reduce(vote, group=world.control)
    label_tokens, tokens, pairs, saves, *votes = vote.tolist()
    strongest = max(why for why, count in zip(StopReason, votes, strict=True) if count)
    return Agreement(label_tokens, tokens, pairs, strongest, save=saves > 0)


def reseed(seed: int, step: int, rank: int) -> None:
    """Make all random numbers of a step a function of these three, so that none need be saved."""
    value = seed_of(seed, "step", step, rank)
    random.seed(value)
    np.random.seed(value % 2**32)
    torch.manual_seed(value)


@dataclass(frozen=True)
class StepResult:
    """The same on every rank, to the last bit."""

    loss: float
    """Mean cross-entropy over the label tokens of all ranks, in nats."""
    grad_norm: float
    """2-norm of the whole gradient, before clipping."""


@dataclass(frozen=True)
class Stepper:
    """Computes optimizer steps of one model."""

    model: LanguageModel
    optimizer: Optimizer
    policy: ShardPolicy
    world: World
    max_grad_norm: float | None
    mark: Callable[[], None] = lambda: None
    """Called between the parts of a step: forward, backward, totals, optimizer."""

    def forward_backward(self, batches: Sequence[MicroBatch], label_tokens: int) -> StepResult:
        """Accumulate the gradients of this rank's micro-batches; ``label_tokens`` of all ranks."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for index, batch in enumerate(batches):
            if index:
                faults.at(faults.Moment.ACCUMULATION, micro_batch=index)
            self._announce_backward(last=index == len(batches) - 1)
            loss = self.model.loss_sum(batch.to(self.world.device, non_blocking=True))
            if faults.at(faults.Moment.STEP, micro_batch=index):
                loss = loss * math.nan
            self.mark()
            torch.autograd.backward(loss / max(1, label_tokens))
            self.mark()
            total += loss.detach()
        # Loss sum and gradient norm over all ranks, in one all-reduce.
        squares = sum_of_squares(self._gradients(), self.world.device)
        if not self.world.first_replica:
            squares.zero_()
        totals = torch.stack([total, squares])
        dist.all_reduce(totals)
        loss_sum, squared_norm = totals.tolist()
        self.mark()
        grad_norm = math.sqrt(squared_norm) if squared_norm >= 0 else math.nan
        return StepResult(loss_sum / max(1, label_tokens), grad_norm)

    def optimizer_step(self, grad_norm: float) -> None:
        """Clip the gradients, whose global norm is ``grad_norm``, and update the parameters."""
        scale(self._gradients(), norm=grad_norm, max_norm=self.max_grad_norm)
        faults.at(faults.Moment.OPTIMIZER)
        self.optimizer.step()

    def clear_gradients(self) -> None:
        """Drop the gradients, applied or not."""
        self.optimizer.zero_grad()
        self.mark()

    def weights_finite(self) -> bool:
        """Whether all parameters of all ranks are finite; asks everyone, the same answer for all.

        Only for steps that went wrong already: it reads the whole model.
        """
        shards = local_shards(p.detach() for p in self.model.module.parameters())
        squares = sum_of_squares(shards, self.world.device)
        dist.all_reduce(squares)
        return math.isfinite(squares.item())

    def _gradients(self) -> list[Tensor]:
        parameters = self.model.module.parameters()
        return local_shards(p.grad for p in parameters if p.grad is not None)

    def _announce_backward(self, *, last: bool) -> None:
        """Tell FSDP whether gradients are complete after the next backward."""
        root = self.model.module
        assert isinstance(root, FSDPModule)
        root.set_is_last_backward(last)
        if self.policy.defer_grad_sync:
            root.set_requires_gradient_sync(last)
        elif self.world.replicas > 1:
            root.set_requires_all_reduce(last)
        if not self.policy.reshard_after_forward:
            for unit in sharded_units(root):
                unit.set_reshard_after_backward(last, recurse=False)


@dataclass(frozen=True)
class ValidationResult:
    """The same on every rank."""

    loss: float
    """Mean cross-entropy over the label tokens of the whole data set, in nats."""
    label_tokens: int
    samples: int


@torch.no_grad()
def validate(
    model: LanguageModel,
    batches: Iterable[MicroBatch],
    world: World,
    interrupted: Callable[[], bool],
) -> ValidationResult | None:
    """One pass; every rank brings the same number of micro-batches, empty ones at the end.

    ``interrupted`` is asked before each and must answer alike on every rank; if it is true, there
    is no result.
    """
    model.module.eval()
    totals = torch.zeros(3, dtype=torch.float64, device=world.device)
    try:
        for batch in batches:
            if interrupted():
                return None
            loss = model.loss_sum(batch.to(world.device, non_blocking=True))
            totals[0] += loss
            totals[1] += batch.label_tokens
            totals[2] += len(set(batch.doc_ids))
    finally:
        free_full_parameters(model.module)
        model.module.train()
    dist.all_reduce(totals)
    loss_sum, label_tokens, samples = totals.tolist()
    return ValidationResult(loss_sum / max(1.0, label_tokens), int(label_tokens), int(samples))
