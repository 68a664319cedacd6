"""A Hugging Face ``Trainer`` script that survives what happens, unchanged but for three lines.

    python -m launcher configs/own_hf_trainer.yaml

Trains a tiny Llama on numbers; nothing is downloaded. Needs accelerate: pip install
'submitrain[train,trainer]'.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

from submitrain.train.user_function.context import RunContext
from submitrain.train.user_function.trainer import RunCallback

VOCABULARY, LENGTH = 64, 16


def train(ctx: RunContext, steps: int, save_steps: int = 10) -> None:
    """Train ``steps`` optimizer steps, saving every ``save_steps`` of them."""
    ctx.init_process_group()
    torch.manual_seed(ctx.seed)
    trainer = Trainer(
        model=LlamaForCausalLM(
            LlamaConfig(
                vocab_size=VOCABULARY, hidden_size=32, intermediate_size=64, num_hidden_layers=1,
                num_attention_heads=4,
            )
        ),
        args=TrainingArguments(
            output_dir=str(ctx.run_folder / "trainer"),
            max_steps=steps,
            save_steps=save_steps,
            logging_steps=1,
            per_device_train_batch_size=4,
            learning_rate=1e-2,
            seed=ctx.seed,
            use_cpu=ctx.device.type == "cpu",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Counting(256),
        data_collator=default_data_collator,
        callbacks=[RunCallback(ctx)],
    )  # fmt: skip
    found = ctx.latest_checkpoint()
    trainer.train(resume_from_checkpoint=str(found.folder) if found else None)


class Counting(torch.utils.data.Dataset[dict[str, Any]]):
    """Sequences of consecutive numbers."""

    def __init__(self, samples: int) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return self._samples

    def __getitem__(self, number: int) -> dict[str, Any]:
        ids = [(number + place) % VOCABULARY for place in range(LENGTH)]
        return {"input_ids": ids, "labels": ids}
