"""Micro-batches: documents side by side that cannot see each other."""

from __future__ import annotations

import pickle
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from submitrain.train.data.batch import MicroBatch, Padding, collate, empty_batch
from submitrain.train.data.store import TokenStore
from tests.data_parts import make_store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return make_store(tmp_path_factory.mktemp("store"), [2, 4, 3, 7, 2, 5, 9])


def documents_of(batch: MicroBatch) -> list[slice]:
    borders = batch.cu_seqlens.tolist()
    return [slice(a, b) for a, b in pairwise(borders)]


def test_layout_of_two_documents(store: TokenStore) -> None:
    batch = collate(store, [1, 2])
    assert batch.input_ids.tolist() == [[1000, 1001, 1002, 1003, 2000, 2001, 2002]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 0, 1, 2]]
    assert batch.labels.tolist() == [[-100, 1002, 1003, -100, 2001, 2002, -100]]
    assert batch.cu_seqlens.tolist() == [0, 4, 7]
    assert batch.label_positions.tolist() == [1, 2, 4, 5]
    assert (batch.max_seqlen, batch.tokens, batch.label_tokens) == (4, 7, 4)
    assert batch.doc_ids == (1, 2)


def test_types_are_those_that_kernels_want(store: TokenStore) -> None:
    batch = collate(store, [1])
    tensors = (batch.input_ids, batch.position_ids, batch.labels, batch.label_positions)
    assert {tensor.dtype for tensor in tensors} == {torch.int64}
    assert batch.cu_seqlens.dtype == torch.int32


@settings(deadline=None)
@given(docs=st.lists(st.integers(0, 6), min_size=1, max_size=8), padded=st.booleans())
def test_label_is_the_next_token_of_the_same_document(
    store: TokenStore, docs: list[int], padded: bool
) -> None:
    batch = collate(store, docs, Padding(total=80, chunk=20) if padded else None)
    for span, doc in zip(documents_of(batch), docs, strict=False):
        ids, is_label = store.document(doc)
        expected = [
            int(token) if learned else -100
            for token, learned in zip(ids[1:], is_label[1:], strict=True)
        ]
        assert batch.input_ids[0, span].tolist() == ids.tolist()
        assert batch.labels[0, span].tolist() == [*expected, -100]
    assert (batch.labels[0, batch.tokens :] == -100).all()


@settings(deadline=None)
@given(docs=st.lists(st.integers(0, 6), max_size=8))
def test_padded_batch_has_the_same_shape_always(store: TokenStore, docs: list[int]) -> None:
    batch = collate(store, docs, Padding(total=80, chunk=20))
    assert batch.input_ids.shape == batch.labels.shape == batch.position_ids.shape == (1, 80)
    assert int(batch.cu_seqlens[-1]) == 80
    assert batch.max_seqlen <= 20
    assert batch.tokens == sum(len(store.document(doc)[0]) for doc in docs)


@pytest.mark.parametrize("padding", [None, Padding(total=16, chunk=8)])
def test_empty_batch_can_be_computed_and_learns_nothing(padding: Padding | None) -> None:
    batch = empty_batch(padding)
    assert batch.input_ids.shape[1] >= 2
    assert (batch.tokens, batch.label_tokens, batch.doc_ids) == (0, 0, ())
    assert (batch.labels == -100).all()


def test_batch_moves_to_a_device(store: TokenStore) -> None:
    batch = collate(store, [1]).to("meta", non_blocking=True)
    tensors = (batch.input_ids, batch.position_ids, batch.labels, batch.cu_seqlens)
    assert {tensor.device.type for tensor in tensors} == {"meta"}


def test_batch_survives_the_way_from_a_loader_process(store: TokenStore) -> None:
    batch = collate(store, [1, 5])
    copy = pickle.loads(pickle.dumps(batch))
    assert copy.labels.equal(batch.labels)
    assert copy.cu_seqlens.equal(batch.cu_seqlens)
    assert (copy.doc_ids, copy.tokens) == (batch.doc_ids, batch.tokens)


def test_batch_names_samples_by_their_number_in_the_data(tmp_path: Path) -> None:
    """Document 1 of this store is sample 2: sample 1 had nothing to learn."""
    store = make_store(tmp_path, [4, 1, 4])
    assert collate(store, [0, 1]).doc_ids == (0, 2)
