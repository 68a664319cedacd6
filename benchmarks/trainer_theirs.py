"""The other side of ``benchmarks.trainer``: Hugging Face's Trainer on the same data and model.

Its settings are its defaults but for what has to be the same on both sides: micro-batch and
accumulation, learning rate, precision, seed, CPU, and nothing saved or reported.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    default_data_collator,
)

from benchmarks.stopwatch import Stopwatch
from benchmarks.trainer_data import IGNORED, Batch, Feature, Rows, flatten, useful_tokens
from submitrain.config import RunConfig


class TimedTrainer(Trainer):  # type: ignore[misc]
    """Trainer that tells a stopwatch what it is about to compute."""

    watch: Stopwatch
    first_ids: Tensor | None = None

    def training_step(self, model: nn.Module, inputs: Batch, *rest: Any) -> Tensor:
        """Count, then go on as ever."""
        if self.first_ids is None:
            self.first_ids = inputs["input_ids"].flatten()[:64].clone()
        self.watch.count(
            tokens=useful_tokens(inputs),
            label_tokens=int((inputs["labels"] != IGNORED).sum()),
            slots=inputs["input_ids"].numel(),
        )
        loss: Tensor = super().training_step(model, inputs, *rest)
        return loss


class StepClock(TrainerCallback):  # type: ignore[misc]
    """Stops the time at the end of every optimizer step."""

    def __init__(self, watch: Stopwatch) -> None:
        self.watch = watch

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Note it."""
        self.watch.step_done()


@dataclass(frozen=True)
class Theirs:
    """One setting of Trainer; every round is a new Trainer with a new model."""

    config: RunConfig
    rows: Rows
    collate: Callable[[Any], Any]
    folder: Path
    vocabulary: int
    bf16: bool = False
    batch_size: int | None = None
    """Rows per micro-batch where it is not that of ``config``."""

    def round(self, watch: Stopwatch) -> None:
        """Train ``max_steps`` steps."""
        torch.manual_seed(self.config.seed)
        trainer = TimedTrainer(
            model=llama(self.config, self.vocabulary),
            args=self._arguments(),
            train_dataset=self.rows,
            data_collator=self.collate,
            callbacks=[StepClock(watch)],
        )
        trainer.watch = watch
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer.train()
        ranks_have_their_own_data(trainer)

    def _arguments(self) -> TrainingArguments:
        batch = self.config.batch(torch.distributed.get_world_size())
        rows = self.batch_size or batch.local_size
        return TrainingArguments(
            output_dir=str(self.folder),
            use_cpu=True,
            bf16=self.bf16,
            max_steps=self.config.step_scheduler.max_steps,
            per_device_train_batch_size=rows,
            gradient_accumulation_steps=batch.accumulation * batch.local_size // rows,
            learning_rate=self.config.optimizer.lr,
            seed=self.config.seed,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        )


def padded(tokenizer: PreTrainedTokenizerBase) -> Callable[[Any], Any]:
    """The usual collator of fine-tuning: pad to the longest row of the micro-batch."""
    collator: Callable[[Any], Any] = DataCollatorForSeq2Seq(tokenizer)
    return collator


def as_they_are() -> Callable[[Any], Any]:
    """For rows of equal length."""
    collator: Callable[[Any], Any] = default_data_collator
    return collator


def llama(config: RunConfig, vocabulary: int) -> LlamaForCausalLM:
    """The model of ``config`` as Trainer gets it: float32, sdpa."""
    sizes = dict(config.model.config or {})
    assert sizes.pop("model_type") == "llama"
    return LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes)).float()


def ranks_have_their_own_data(trainer: TimedTrainer) -> None:
    """Fail where all ranks trained on the same rows: half the work would look like all of it.

    Raises:
        RuntimeError: they did.
    """
    assert trainer.first_ids is not None
    everyone: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everyone, trainer.first_ids.tolist())
    if len({tuple(ids) for ids in everyone}) < len(everyone):
        raise RuntimeError("Trainer gave all ranks the same data")


def keeps_documents_apart(model: nn.Module, rows: Sequence[Feature]) -> bool:
    """Whether a flattened row gives each document the logits that it has alone."""
    model.eval()
    batch = flatten([rows])
    with torch.no_grad():
        together = model(
            input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False
        ).logits[0]
        alone = [model(torch.tensor([one["input_ids"]])).logits[0] for one in rows]
    return bool(torch.allclose(together, torch.cat(alone), atol=1e-4))
