"""Small real parts for tests of the data: a tokenizer trained on the spot, stores, sections."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from submitrain.config.sections import DatasetConfig
from submitrain.train.data.encode import Document
from submitrain.train.data.prepare import train_tokenizer
from submitrain.train.data.store import TokenStore, write_store

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
CHATML_MARKED = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if m['role'] == 'assistant' %}"
    "{% generation %}{{ m['content'] }}<|im_end|>{% endgeneration %}\n{% else %}"
    "{{ m['content'] }}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
LAST_TURN_DIFFERS = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['role'] == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}"
    "{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""Like Qwen3's: earlier answers lose their thinking when a later turn follows."""

TEXTS = [f"def add_{i}(a, b):\n    return a + {i}  # the answer is {i * i}" for i in range(200)]


@cache
def _trained() -> Any:
    return train_tokenizer(TEXTS, 400)


def make_tokenizer(template: str | None = None) -> Any:
    """A byte-level BPE tokenizer; with a chat template it also has ChatML's special tokens."""
    from copy import deepcopy

    tokenizer = deepcopy(_trained())
    if template is not None:
        tokenizer.add_special_tokens(
            {"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]},
        )
        tokenizer.chat_template = template
    return tokenizer


def write_rows(path: Path, rows: Sequence[Any]) -> Path:
    """Write a JSONL file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def section(**keys: Any) -> DatasetConfig:
    """A dataset section."""
    return DatasetConfig.model_validate(keys)


def make_store(folder: Path, lengths: Sequence[int]) -> TokenStore:
    """Documents of the given lengths; document ``i`` is ``i * 1000, i * 1000 + 1, ...`` and its
    second half is learned."""
    documents = []
    for number, length in enumerate(lengths):
        ids = np.arange(length, dtype=np.int32) + number * 1000
        documents.append(Document(ids, np.arange(length) >= max(length // 2, 1)))
    return write_store(folder, documents, where="made up")
