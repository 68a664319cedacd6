"""Packed documents get the logits and the loss that each of them gets alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoModelForCausalLM

from submitrain.errors import ConfigError
from submitrain.train.data.batch import MicroBatch, empty_batch
from submitrain.train.model.attention import (
    PER_DOCUMENT,
    VARLEN_MODELS,
    Layout,
    is_short,
    plan_attention,
    register,
    short_attention,
)
from submitrain.train.model.loss import LanguageModel, chunked_head
from submitrain.train.model.shard import fuse_norms

VOCABULARY = 64
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
SPECIAL: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64},
    "mistral": {"sliding_window": 5},
    "mixtral": {"num_local_experts": 4},
    "qwen2": {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 1},
    "qwen3_moe": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16},
    "starcoder2": {"use_bias": True},
    "mamba": {"state_size": 4, "conv_kernel": 3},
    "bloom": {"n_layer": 2, "n_head": 4},
    "gemma2": {"attn_logit_softcapping": 5.0, "query_pre_attn_scalar": 8, "sliding_window": 8},
    "gpt_oss": {"num_local_experts": 4, "sliding_window": 8},
    "opt": {"ffn_dim": 64, "word_embed_proj_dim": 32},
}


def make_model(model_type: str, attention: str) -> torch.nn.Module:
    """A tiny model with large random weights, so that a leak between documents shows."""
    register()
    config = AutoConfig.for_model(model_type, **{**SIZES, **SPECIAL.get(model_type, {})})
    for name in vars(config):
        if name.endswith(("dropout", "pdrop")):
            setattr(config, name, 0.0)
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(
        config, dtype=torch.float32, attn_implementation=attention
    )
    return model.eval()


def documents() -> list[np.ndarray]:
    """Documents of very different lengths, one longer than the sliding windows."""
    rng = np.random.RandomState(1)
    return [rng.randint(1, VOCABULARY, length).astype(np.int64) for length in (3, 17, 2, 9, 30)]


def packed(docs: list[np.ndarray]) -> MicroBatch:
    """All of them in one row; every second token is a prompt token without loss."""
    lengths = np.array([len(doc) for doc in docs])
    ends = np.cumsum(lengths)
    labels = np.concatenate([np.append(doc[1:], -100) for doc in docs])
    labels[::2] = -100
    positions = np.flatnonzero(labels != -100)
    return MicroBatch(
        input_ids=torch.from_numpy(np.concatenate(docs))[None],
        position_ids=torch.from_numpy(np.concatenate([np.arange(n) for n in lengths]))[None],
        labels=torch.from_numpy(labels)[None],
        cu_seqlens=torch.from_numpy(np.concatenate([[0], ends]).astype(np.int32)),
        max_seqlen=int(lengths.max()),
        label_positions=torch.from_numpy(positions),
        doc_ids=tuple(range(len(docs))),
        tokens=int(ends[-1]),
        label_tokens=len(positions),
    )


def separate_loss(model: torch.nn.Module, docs: list[np.ndarray], batch: MicroBatch) -> float:
    """The reference: every document by itself, nothing of ours involved."""
    rows = [model(torch.from_numpy(doc)[None], use_cache=False).logits[0] for doc in docs]
    return float(
        F.cross_entropy(torch.cat(rows), batch.labels[0], ignore_index=-100, reduction="sum")
    )


def relative(got: torch.Tensor, expected: float) -> float:
    return abs(float(got) - expected) / expected


@torch.no_grad()
@pytest.mark.parametrize("model_type", sorted(VARLEN_MODELS))
def test_packed_loss_is_that_of_separate_documents(model_type: str) -> None:
    docs = documents()
    batch = packed(docs)
    expected = separate_loss(make_model(model_type, "eager"), docs, batch)
    model = make_model(model_type, PER_DOCUMENT)
    fuse_norms(model)
    loss = LanguageModel(model, Layout.FLAT, None).loss_sum(batch)
    assert relative(loss, expected) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["bloom", "gemma2", "gpt_oss", "mamba", "opt", "llama"])
def test_padded_loss_is_that_of_separate_documents(model_type: str) -> None:
    docs = documents()
    batch = packed(docs)
    model = make_model(model_type, "eager")
    loss = LanguageModel(model, Layout.PADDED, None).loss_sum(batch)
    assert relative(loss, separate_loss(model, docs, batch)) < 1e-6


@torch.no_grad()
@pytest.mark.parametrize("model_type", ["llama", "gpt2", "qwen3"])
def test_packed_logits_are_those_of_separate_documents(model_type: str) -> None:
    docs = documents()
    batch = packed(docs)
    model = make_model(model_type, PER_DOCUMENT)
    inputs = LanguageModel(model, Layout.FLAT, None)._flat(batch)
    together = model(**{**inputs, "logits_to_keep": 0}).logits[0]
    reference = make_model(model_type, "sdpa")
    alone = torch.cat([reference(torch.from_numpy(doc)[None]).logits[0] for doc in docs])
    assert float((together - alone).abs().max() / alone.abs().max()) < 1e-5


@torch.no_grad()
def test_packed_documents_without_boundaries_would_differ() -> None:
    docs = documents()
    batch = packed(docs)
    model = make_model("llama", "sdpa")
    loss = LanguageModel(model, Layout.FLAT, None).loss_sum(
        MicroBatch(**{**vars(batch), "position_ids": torch.arange(batch.tokens)[None]})
    )
    assert relative(loss, separate_loss(model, docs, batch)) > 1e-3


def test_chunked_head_gives_the_same_loss_and_gradient() -> None:
    batch = packed(documents())
    whole, chunked = (make_model("llama", PER_DOCUMENT) for _ in range(2))
    expected = LanguageModel(whole, Layout.FLAT, None).loss_sum(batch)
    head = chunked_head(chunked, VOCABULARY)
    assert head is not None
    head.chunk_rows = 7
    assert batch.label_tokens > 7
    loss = LanguageModel(chunked, Layout.FLAT, head).loss_sum(batch)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    for (name, got), wanted in zip(chunked.named_parameters(), whole.parameters(), strict=True):
        torch.testing.assert_close(got.grad, wanted.grad, msg=name)


@pytest.mark.parametrize("model_type", ["gemma2", "granite", "cohere"])
def test_head_of_a_model_that_changes_its_logits_is_not_chunked(model_type: str) -> None:
    assert chunked_head(make_model(model_type, "eager"), VOCABULARY) is None


@pytest.mark.parametrize("layout", list(Layout))
def test_batch_without_labels_gives_an_exact_zero(layout: Layout) -> None:
    model = make_model("llama", PER_DOCUMENT if layout is Layout.FLAT else "eager")
    loss = LanguageModel(model, layout, None).loss_sum(empty_batch())
    loss.backward()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    assert float(loss.detach()) == 0.0
    assert all(not gradient.any() for gradient in gradients)


@pytest.mark.parametrize(
    ("asked", "model_type", "expected"),
    [
        ("auto", "llama", (PER_DOCUMENT, Layout.FLAT)),
        ("sdpa", "llama", (PER_DOCUMENT, Layout.FLAT)),
        ("eager", "llama", ("eager", Layout.PADDED)),
        ("auto", "bloom", ("sdpa", Layout.PADDED)),
    ],
)
def test_plan_on_a_cpu(asked: str, model_type: str, expected: tuple[str, Layout]) -> None:
    config = AutoConfig.for_model(model_type)
    plan = plan_attention(asked, config, torch.device("cpu"), "float32")
    assert (plan.implementation, plan.layout) == expected


def test_flash_attention_on_a_cpu_is_refused_with_a_next_step() -> None:
    config = AutoConfig.for_model("llama")
    with pytest.raises(ConfigError, match=r"needs a GPU.*use auto or sdpa"):
        plan_attention("flash_attention_2", config, torch.device("cpu"), "bfloat16")


def test_missing_flash_attention_on_a_gpu_is_refused_with_what_to_install() -> None:
    config = AutoConfig.for_model("llama")
    with pytest.raises(ConfigError, match="pip install flash-attn"):
        plan_attention("flash_attention_2", config, torch.device("cuda"), "bfloat16")


def test_gpu_without_flash_attn_takes_torchs_own_varlen_kernel() -> None:
    config = AutoConfig.for_model("llama")
    plan = plan_attention("auto", config, torch.device("cuda"), "bfloat16")
    assert plan.implementation == "submitrain_torch_varlen"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("length", [1, 2, 33, 150])
def test_short_documents_are_attended_to_as_by_torch(
    dtype: torch.dtype, heads: int, kv_heads: int, length: int
) -> None:
    torch.manual_seed(0)
    shapes = [(1, heads, length, 16), (1, kv_heads, length, 16), (1, kv_heads, length, 16)]
    ours = [torch.randn(shape).to(dtype).requires_grad_() for shape in shapes]
    exact = [tensor.detach().double().requires_grad_() for tensor in ours]
    weights = torch.randn(1, heads, length, 16)
    output = short_attention(*ours, 0.3)
    expected = F.scaled_dot_product_attention(
        *exact, is_causal=True, scale=0.3, enable_gqa=heads != kv_heads
    )
    (output.float() * weights).sum().backward()
    (expected * weights).sum().backward()
    tolerance = 1e-5 if dtype is torch.float32 else 0.06
    assert is_short(ours[0])
    assert torch.allclose(output.double(), expected, atol=tolerance)
    for mine, true in zip(ours, exact, strict=True):
        assert mine.grad is not None
        assert true.grad is not None
        error = (mine.grad.double() - true.grad).norm() / true.grad.norm().clamp(min=1e-9)
        assert float(error) < tolerance or length == 1
