"""Weights of a sharded model: random ones are the same at any world size, pretrained ones exact."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from submitrain.config import RunConfig
from submitrain.train.context import RankContext
from tests.forked import run_forked

pytestmark = pytest.mark.ranks

TINY: dict[str, dict[str, Any]] = {
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 3,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 101,
        "max_position_embeddings": 64,
    },
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "vocab_size": 101},
}
IDS = [[5, 17, 3, 99, 42, 7, 1]]


class Vocabulary:
    """As much of a tokenizer as building a model needs."""

    bos_token_id = eos_token_id = pad_token_id = 0

    def __len__(self) -> int:
        return 101


def build(
    context: RankContext, model: dict[str, Any], peft: bool = False, whole: bool = True
) -> dict[str, Any]:
    """Work of a rank: build and fill the model; returns whole tensors and logits.

    Without ``whole`` no rank may read a whole model.
    """
    from torch.distributed.tensor import DTensor

    import submitrain.train.model.weights
    from submitrain.train.distributed.groups import join
    from submitrain.train.model.build import build_model, fill_weights

    if not whole:
        submitrain.train.model.weights._read_whole = None  # type: ignore[assignment]
    values: dict[str, Any] = {"model": {"torch_dtype": "float32", **model}}
    if peft:
        values["peft"] = {"dim": 4}
    config = RunConfig.model_validate(values)
    world = join(context, config.distributed)
    built = build_model(config, Vocabulary(), world, local_rank=context.local_rank, accumulation=1)
    fill_weights(built, config, world)
    tensors = {
        name: (p.full_tensor() if isinstance(p, DTensor) else p).detach().numpy()
        for name, p in built.module.named_parameters(remove_duplicate=False)
    }
    built.module.eval()
    with torch.no_grad():
        ids = torch.tensor(IDS)
        borders = torch.tensor([0, ids.shape[1]], dtype=torch.int32)
        logits = built.module(
            input_ids=ids, cu_seq_lens_q=borders, cu_seq_lens_k=borders, use_cache=False
        ).logits
    most = max(p.to_local().numel() for p in built.module.parameters() if isinstance(p, DTensor))
    return {"tensors": tensors, "logits": logits.numpy(), "largest_shard": most}


def saved_model(
    folder: Path, model_type: str, dtype: torch.dtype, **values: Any
) -> PreTrainedModel:
    torch.manual_seed(1)
    config = AutoConfig.for_model(model_type, **{**TINY[model_type], **values})
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    model.save_pretrained(folder)
    return model.float()


@pytest.mark.parametrize(
    "inline",
    [
        {"model_type": "llama", **TINY["llama"]},
        {"model_type": "llama", "tie_word_embeddings": True, **TINY["llama"]},
        {"model_type": "gpt2", **TINY["gpt2"]},
    ],
    ids=["llama", "tied", "gpt2"],
)
def test_random_weights_do_not_depend_on_the_world_size(
    tmp_path: Path, inline: dict[str, Any]
) -> None:
    alone = run_forked(1, build, tmp_path / "one", {"config": inline})[0]
    for result in run_forked(3, build, tmp_path / "three", {"config": inline}):
        assert list(result["tensors"]) == list(alone["tensors"])
        for name, value in alone["tensors"].items():
            np.testing.assert_array_equal(result["tensors"][name], value, err_msg=name)


def test_random_weights_are_spread_as_transformers_spreads_them(tmp_path: Path) -> None:
    inline = {"model_type": "gpt2", **TINY["gpt2"], "initializer_range": 0.1}
    ours = run_forked(2, build, tmp_path / "run", {"config": inline})[0]["tensors"]
    config = AutoConfig.for_model("gpt2", **TINY["gpt2"], initializer_range=0.1)
    for name, theirs in AutoModelForCausalLM.from_config(config).named_parameters():
        spread, expected = float(ours[name].std()), float(theirs.detach().std())
        assert spread == pytest.approx(expected, rel=0.1, abs=1e-9), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_every_rank_reads_its_slices_of_a_pretrained_model(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    reference = saved_model(tmp_path / "model", "llama", dtype)
    with torch.no_grad():
        logits = reference(torch.tensor(IDS)).logits.numpy()
    model = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    for result in run_forked(2, build, tmp_path / "run", model, False, False):
        for name, value in reference.named_parameters():
            np.testing.assert_array_equal(result["tensors"][name], value.detach().numpy())
        np.testing.assert_allclose(result["logits"], logits, rtol=1e-5, atol=1e-6)
        assert result["largest_shard"] <= 51 * 32


def test_tied_pretrained_model_stays_tied(tmp_path: Path) -> None:
    saved_model(tmp_path / "model", "llama", torch.float32, tie_word_embeddings=True)
    model = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    tensors = run_forked(2, build, tmp_path / "run", model)[0]["tensors"]
    np.testing.assert_array_equal(tensors["lm_head.weight"], tensors["model.embed_tokens.weight"])


def test_files_with_other_names_are_converted_by_rank_0_and_sent(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    reference = saved_model(tmp_path / "model", "gpt2", torch.float32)
    path = tmp_path / "model" / "model.safetensors"
    renamed = {name.removeprefix("transformer."): t for name, t in load_file(path).items()}
    assert "wte.weight" in renamed  # as the hub's gpt2 has it
    save_file(renamed, path, metadata={"format": "pt"})
    model = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    for result in run_forked(2, build, tmp_path / "run", model):
        for name, value in reference.named_parameters():
            np.testing.assert_array_equal(result["tensors"][name], value.detach().numpy())


def test_adapters_change_nothing_before_the_first_step(tmp_path: Path) -> None:
    reference = saved_model(tmp_path / "model", "llama", torch.float32)
    with torch.no_grad():
        logits = reference(torch.tensor(IDS)).logits.numpy()
    model = {"pretrained_model_name_or_path": str(tmp_path / "model")}
    result = run_forked(2, build, tmp_path / "run", model, True)[0]
    assert any(".lora_A." in name for name in result["tensors"])
    np.testing.assert_allclose(result["logits"], logits, rtol=1e-5, atol=1e-6)


def own_builder(width: int) -> PreTrainedModel:
    """What a user may name as ``model._target_``."""
    values = {**TINY["llama"], "hidden_size": width}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **values))


def own_wrong_builder() -> torch.nn.Module:
    return torch.nn.Linear(2, 2)


def test_model_of_ones_own_builder_is_sharded_and_equal_on_all_ranks(tmp_path: Path) -> None:
    model = {"_target_": "tests.local.test_model_build.own_builder", "width": 16}
    first, second = run_forked(2, build, tmp_path / "run", model)
    assert first["tensors"]["model.embed_tokens.weight"].shape == (101, 16)
    for name, value in first["tensors"].items():
        np.testing.assert_array_equal(second["tensors"][name], value, err_msg=name)


def test_builder_of_something_else_is_refused(tmp_path: Path) -> None:
    model = {"_target_": "tests.local.test_model_build.own_wrong_builder"}
    with pytest.raises(AssertionError, match=r"returned Linear; expected a transformers"):
        run_forked(1, build, tmp_path / "run", model)


def test_vocabulary_smaller_than_the_tokenizers_is_refused(tmp_path: Path) -> None:
    inline = {"model_type": "llama", **TINY["llama"], "vocab_size": 90}
    with pytest.raises(AssertionError, match="101 tokens, the model's vocabulary only 90"):
        run_forked(1, build, tmp_path / "run", {"config": inline})
