"""What Hugging Face's Trainer trains on in the benches: rows made from our token store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor
from transformers import DataCollatorWithFlattening

from submitrain.train.data.batch import Units
from submitrain.train.data.store import TokenStore

Feature = dict[str, list[int]]
Batch = dict[str, Tensor]
IGNORED = -100


@dataclass(frozen=True)
class Rows:
    """Map-style data of lists of token ids and labels."""

    read: Callable[[int], Any]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Any:
        return self.read(index)


def feature(store: TokenStore, doc: int) -> Feature:
    """One document: its prompt has no labels, as on our side."""
    ids, is_label = store.document(doc)
    return {"input_ids": ids.tolist(), "labels": np.where(is_label, ids, IGNORED).tolist()}


def documents(store: TokenStore) -> Rows:
    """One document per row."""
    return Rows(lambda index: feature(store, index), len(store))


def packs(store: TokenStore, units: Units) -> Rows:
    """The same packs as on our side: lists of documents."""
    return Rows(lambda index: [feature(store, int(doc)) for doc in units[index]], len(units))


def chunks(store: TokenStore, length: int, seed: int) -> Rows:
    """All documents one after the other in a shuffled order, cut into rows of ``length``.

    As in transformers' ``run_clm.py``: a row sees several documents, and cuts them anywhere.
    """
    order = np.random.RandomState(seed).permutation(len(store))
    rows = [feature(store, int(doc)) for doc in order]
    ids = [token for row in rows for token in row["input_ids"]]
    labels = [label for row in rows for label in row["labels"]]

    def read(index: int) -> Feature:
        part = slice(index * length, (index + 1) * length)
        return {"input_ids": ids[part], "labels": labels[part]}

    return Rows(read, len(ids) // length)


def flatten(batch: Sequence[Sequence[Feature]]) -> Batch:
    """transformers' way without padding: one row, documents told apart by their positions."""
    collated: Batch = DataCollatorWithFlattening()([one for pack in batch for one in pack])
    return collated


def useful_tokens(inputs: Batch) -> int:
    """Positions that are not padding."""
    mask = inputs.get("attention_mask")
    return inputs["input_ids"].numel() if mask is None else int(mask.sum())
