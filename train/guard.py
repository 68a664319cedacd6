"""Between a step's gradients and its update: judge it, record what is wrong, go back if need be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch.distributed as dist

from train.anomaly import Judgement, Memory, Observed, Place, Verdict, judge
from train.config import RunConfig
from train.data.batch import MicroBatch
from train.errors import LossSpikeError, NotFiniteError
from train.journal import Journal
from train.step import Stepper, StepResult

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
