"""One optimizer step: agree on the step's size, accumulate gradients, check, clip, update.

From a micro-batch to a loss: the sum of its label tokens' cross-entropies, in float32.

The head runs on labelled positions only, and for large vocabularies in chunks, so that the logits
of a whole micro-batch never exist at once.

Validation: the mean cross-entropy over the label tokens of a whole data set.
"""

from __future__ import annotations

import inspect
import math
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.optim import Optimizer
from torch.utils.checkpoint import checkpoint

from submitrain.processes import StopReason
from submitrain.train import faults
from submitrain.train.data.batch import MicroBatch
from submitrain.train.distributed.groups import World
from submitrain.train.model.attention import Layout, boundaries
from submitrain.train.model.shard import ShardPolicy, free_full_parameters, sharded_units
from submitrain.train.model.weights import seed_of
from submitrain.train.optim import local_gradients, local_parameters, scale, sum_of_squares

CHUNK_BYTES = 256 * 2**20
"""Logits in float32 that may exist at once, in bytes."""


class ChunkedHead:
    """Lets a model's output head return token losses instead of logits while ``targets`` are set.

    It replaces the head's ``forward``: hooks (FSDP gathers the weight in one) stay as they are.
    """

    def __init__(self, head: nn.Module, chunk_rows: int) -> None:
        self.head, self.chunk_rows = head, chunk_rows
        self.plain_forward = head.forward
        self.labels: Tensor | None = None
        head.forward = self.forward

    @contextmanager
    def targets(self, labels: Tensor) -> Iterator[None]:
        """Return losses for ``labels`` [rows] inside the block."""
        self.labels = labels
        try:
            yield
        finally:
            self.labels = None

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits [..., vocabulary]; with targets, losses [rows] in float32."""
        if self.labels is None:
            logits: Tensor = self.plain_forward(hidden)
            return logits
        rows = hidden.reshape(-1, hidden.shape[-1])
        parts = zip(
            torch.split(rows, self.chunk_rows),
            torch.split(self.labels, self.chunk_rows),
            strict=True,
        )
        weight, bias = self.head.weight, self.head.bias
        return torch.cat(
            [checkpoint(_token_losses, *part, weight, bias, use_reentrant=False) for part in parts]
        )


def _token_losses(hidden: Tensor, labels: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return F.cross_entropy(F.linear(hidden, weight, bias).float(), labels, reduction="none")


def chunked_head(model: nn.Module, vocabulary: int) -> ChunkedHead | None:
    """A chunked head, or None where the model does more with its logits than return them.

    Gemma 2 caps them, Granite and Cohere scale them: told from the source of ``forward``.
    """
    head = model.get_output_embeddings()  # type: ignore[operator]
    if not isinstance(head, nn.Linear) or not _returns_head_output(type(model)):
        return None
    return ChunkedHead(head, max(1, CHUNK_BYTES // (4 * vocabulary)))


def _returns_head_output(model: type[nn.Module]) -> bool:
    try:
        source = inspect.getsource(inspect.unwrap(model.forward))
    except (OSError, TypeError):
        return False
    made = re.findall(r"^\s*logits\s+[-+*/]?=\s+(.+)$", source, re.MULTILINE)
    plain = r"self\.(lm_head|embed_out)\(hidden_states(\[.*\])?\)(\.float\(\))?"
    return len(made) == 1 and re.fullmatch(plain, made[0].strip()) is not None


@dataclass(frozen=True)
class LanguageModel:
    """A (sharded) causal LM and how to compute its loss."""

    module: nn.Module
    layout: Layout
    head: ChunkedHead | None

    def loss_sum(self, batch: MicroBatch) -> Tensor:
        """Summed cross-entropy of the batch's label tokens: a float32 scalar.

        A batch without labels gives an exact zero that backward still flows through.
        """
        labels = batch.labels[0, batch.label_positions]
        inputs = self._flat(batch) if self.layout is Layout.FLAT else self._padded(batch)
        if self.head is not None and len(labels) > self.head.chunk_rows:
            with self.head.targets(labels):
                losses: Tensor = self.module(**inputs).logits
                return losses.sum()
        logits = self.module(**inputs).logits
        logits = logits.reshape(-1, logits.shape[-1]).float()
        return F.cross_entropy(logits, labels, reduction="sum")

    def _flat(self, batch: MicroBatch) -> dict[str, Any]:
        """All documents in one row [1, T]; the attention keeps them apart."""
        return {
            "input_ids": batch.input_ids,
            "position_ids": batch.position_ids,
            "attention_mask": None,
            "use_cache": False,
            "logits_to_keep": batch.label_positions,
            **boundaries(batch.cu_seqlens, batch.max_seqlen),
        }

    def _padded(self, batch: MicroBatch) -> dict[str, Any]:
        """One document per row [documents, longest], padded on the right, with a mask."""
        starts = batch.cu_seqlens[:-1].long()
        lengths = torch.diff(batch.cu_seqlens).long()
        columns = torch.arange(int(lengths.max()), device=starts.device)
        real = columns < lengths[:, None]
        source = torch.where(real, starts[:, None] + columns, 0)
        labelled = torch.zeros_like(batch.labels[0], dtype=torch.bool)
        labelled[batch.label_positions] = True
        return {
            "input_ids": torch.where(real, batch.input_ids[0, source], 0),
            "attention_mask": real.long(),
            "use_cache": False,
            "logits_to_keep": labelled[source] & real,
        }


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


@dataclass(frozen=True)
class ValidationResult:
    """The same on every rank."""

    loss: float
    """Nats per label token."""
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
