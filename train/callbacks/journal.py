"""What a run records: events for every tool, metrics for the trackers, log lines for people.

Rank 0 records; sample ids are recorded by the rank that consumed them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import structlog
import torch

from submitrain.config.job import LoggingConfig
from submitrain.events import Kind
from submitrain.train.callbacks.anomaly import AnomalyResult, ObservedStep
from submitrain.train.callbacks.trackers import Trackers
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.context import RankContext
from submitrain.train.data.batch import MicroBatch
from submitrain.train.distributed.hardware import Work, memory_bytes
from submitrain.train.step import Agreement, StepResult, ValidationResult

log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Journal:
    """Records of one rank."""

    context: RankContext
    settings: LoggingConfig
    tracker: Trackers
    device: torch.device
    work: Work
    peak_flops: float | None
    """FLOP/s of one device; None = unknown, and then no MFU is given."""

    def step(
        self,
        state: TrainState,
        result: StepResult,
        agreed: Agreement,
        *,
        lr: float,
        step_s: float,
        data_wait_s: float,
    ) -> None:
        """Record a finished step (rank 0, every ``log_every_steps``).

        ``step_s``: from asking for data to the end of the optimizer, of it ``data_wait_s`` waiting.
        """
        if self.context.rank != 0 or state.step % self.settings.log_every_steps:
            return
        metrics: dict[str, float | int] = {
            "loss": result.loss,
            "grad_norm": result.grad_norm,
            "lr": lr,
            "tokens": agreed.tokens,
            "label_tokens": agreed.label_tokens,
            "total_tokens": state.tokens,
            "tokens_per_s": round(agreed.tokens / step_s, 2),
            "step_s": round(step_s, 6),
            "data_wait_s": round(data_wait_s, 6),
            "mem_bytes": memory_bytes(self.device),
        }
        if self.peak_flops is not None:
            flops = self.work.flops(
                tokens=agreed.tokens, label_tokens=agreed.label_tokens, pairs=agreed.pairs
            )
            peak = self.peak_flops * self.context.world_size
            metrics["mfu"] = round(flops / step_s / peak, 4)
        self.context.events.write(
            Kind.STEP,
            step=state.step,
            epoch=max(0, state.position - 1) // state.units_per_epoch,
            position=state.position,
            **metrics,
            loss_hex=result.loss.hex(),
            grad_norm_hex=result.grad_norm.hex(),
        )
        self.tracker.log(state.step, {f"train/{name}": value for name, value in metrics.items()})
        log.info(
            "step",
            step=state.step,
            loss=round(result.loss, 4),
            grad_norm=round(result.grad_norm, 3),
            lr=float(f"{lr:.3g}"),
            tokens_per_s=round(metrics["tokens_per_s"]),
        )

    def anomaly(self, checked: AnomalyResult, seen: ObservedStep, samples: Sequence[int]) -> None:
        """Record a step that went wrong, and what happens with it (rank 0)."""
        if self.context.rank != 0:
            return
        known: dict[str, Any] = {
            "step": seen.span.step,
            "what": checked.what,
            "action": str(checked.action),
            "loss": seen.loss,
            "grad_norm": seen.grad_norm,
        }
        fields: dict[str, Any] = {
            "z": checked.z,
            "position": seen.span.start,
            "end": seen.span.stop,
            "samples": list(samples),
        }
        if checked.undone:
            fields["first_step"] = min(span.step for span in checked.undone)
            fields["last_step"] = seen.span.step
            fields["windows"] = checked.skips.windows
        self.context.events.write(Kind.ANOMALY, **known, **fields)
        self.tracker.log(seen.span.step, {"train/anomaly": 1})
        log.warning("anomaly", **known)

    def samples(self, step: int, batches: Sequence[MicroBatch]) -> None:
        """Record which samples this rank consumed, where that is asked for."""
        if self.settings.log_sample_ids:
            ids = [i for batch in batches for i in batch.doc_ids]
            self.context.events.write(Kind.SAMPLES, step=step, ids=ids)

    def validation(self, step: int, result: ValidationResult, *, val_s: float) -> None:
        """Record a validation (rank 0)."""
        if self.context.rank != 0:
            return
        self.context.events.write(
            Kind.VALIDATION,
            step=step,
            loss=result.loss,
            loss_hex=result.loss.hex(),
            label_tokens=result.label_tokens,
            samples=result.samples,
            val_s=round(val_s, 3),
        )
        self.tracker.log(step, {"val/loss": result.loss})
        log.info("validation", step=step, loss=round(result.loss, 4), val_s=round(val_s, 2))
