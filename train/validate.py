"""Validation: the mean cross-entropy over the label tokens of a whole data set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
import torch.distributed as dist

from train.data.batch import MicroBatch
from train.dist import World
from train.loss import LanguageModel
from train.shard import free_full_parameters


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
