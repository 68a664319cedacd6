"""One process of Hugging Face's Trainer for ``benchmarks.startup``: one step, then it tells when.

Called as ``python -m benchmarks.startup_trainer TOKENS TOKENIZER`` with torchrun's variables set.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from transformers import (
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    LlamaConfig,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.small import model_sizes
from benchmarks.trainer_data import documents
from submitrain.train.data.store import TokenStore


class TellStep(TrainerCallback):  # type: ignore[misc]
    """Prints when the first step was done."""

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """``DONE``, UTC seconds, and this process's CPU seconds."""
        print(f"DONE {time.time()} {time.process_time()}", flush=True)


def train(tokens: Path, tokenizer_folder: Path) -> None:
    """Train one step."""
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder)
    Trainer(
        model=LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), **model_sizes())),
        args=TrainingArguments(
            output_dir="trainer",
            use_cpu=True,
            max_steps=1,
            per_device_train_batch_size=4,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            remove_unused_columns=False,
        ),
        train_dataset=documents(TokenStore(tokens)),
        data_collator=DataCollatorForSeq2Seq(tokenizer),
        callbacks=[TellStep()],
    ).train()


if __name__ == "__main__":
    train(Path(sys.argv[1]), Path(sys.argv[2]))
