"""One optimizer step: agree on the step's size, accumulate gradients, check, clip, update."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer

from train import faults
from train.data.batch import MicroBatch
from train.dist import World
from train.loss import LanguageModel
from train.optim import local_gradients, local_parameters, scale, sum_of_squares
from train.shard import ShardPolicy, sharded_units
from train.stop import StopReason
from train.weights import seed_of


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
    """Whether to save after this step, where rank 0 decides that (``train.autosave``)."""


@dataclass(frozen=True)
class StepResult:
    """What came of a step; the same on every rank, to the last bit."""

    loss: float
    """Mean cross-entropy over the label tokens of all ranks, in nats."""
    grad_norm: float
    """2-norm of the whole gradient, before clipping."""


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
class Stepper:
    """Computes optimizer steps of one model."""

    model: LanguageModel
    optimizer: Optimizer
    policy: ShardPolicy
    world: World
    max_grad_norm: float | None
    mark: Callable[[], None] = lambda: None
    """Called between the parts of a step: forward, backward, totals, optimizer."""

    def compute(
        self,
        batches: Sequence[MicroBatch],
        label_tokens: int,
        admits: Callable[[StepResult], bool],
    ) -> StepResult:
        """One optimizer step on this rank's micro-batches.

        ``admits`` sees the result before the optimizer runs, on all ranks the same; unless it says
        yes (or when it raises), parameters and optimizer state stay as they are.
        """
        loss_sum = self._accumulate(batches, max(1, label_tokens))
        gradients = local_gradients(self.model.module.parameters())
        loss, grad_norm = self._totals(loss_sum, gradients)
        self.mark()
        loss /= max(1, label_tokens)
        result = StepResult(loss, grad_norm)
        if admits(result):
            scale(gradients, norm=grad_norm, max_norm=self.max_grad_norm)
            faults.at(faults.Moment.OPTIMIZER)
            self.optimizer.step()
        self.optimizer.zero_grad()
        self.mark()
        return result

    def weights_finite(self) -> bool:
        """Whether all parameters of all ranks are finite; asks everyone, the same answer for all.

        Only for steps that went wrong already: it reads the whole model.
        """
        parameters = local_parameters(self.model.module.parameters())
        squares = sum_of_squares(parameters, self.world.device)
        dist.all_reduce(squares)
        return math.isfinite(squares.item())

    def _accumulate(self, batches: Sequence[MicroBatch], label_tokens: int) -> Tensor:
        """Forward and backward of every micro-batch; returns this rank's summed loss (float64)."""
        total = torch.zeros((), dtype=torch.float64, device=self.world.device)
        for index, batch in enumerate(batches):
            if index:
                faults.at(faults.Moment.ACCUMULATION, micro_batch=index)
            self._announce(last=index == len(batches) - 1)
            loss = self.model.loss_sum(batch.to(self.world.device, non_blocking=True))
            if faults.at(faults.Moment.STEP, micro_batch=index):
                loss = loss * math.nan
            self.mark()
            torch.autograd.backward(loss / label_tokens)
            self.mark()
            total += loss.detach()
        return total

    def _announce(self, *, last: bool) -> None:
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

    def _totals(self, loss_sum: Tensor, gradients: list[Tensor]) -> tuple[float, float]:
        """Loss sum and gradient norm over all ranks, in one all-reduce."""
        squares = sum_of_squares(gradients, self.world.device)
        if not self.world.first_replica:
            squares.zero_()
        totals = torch.stack([loss_sum, squares])
        dist.all_reduce(totals)
        loss, squared_norm = totals.tolist()
        return loss, math.sqrt(squared_norm) if squared_norm >= 0 else math.nan
