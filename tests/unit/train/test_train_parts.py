"""The loop's small parts: optimizer, hardware table, components, fused norms."""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from submitrain.config.sections import OptimizerConfig
from submitrain.errors import ConfigError
from submitrain.imports import load_component
from submitrain.train.distributed.hardware import memory_bytes, peak_flops, peak_of, work_of
from submitrain.train.model.shard import fuse_norms, use_liger
from submitrain.train.model.weights import seed_of
from submitrain.train.optim import build_optimizer
from submitrain.train.step import reseed


def tiny(model_type: str = "llama") -> nn.Module:
    sizes = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 24, "head_dim": 4}
    heads = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes, **heads))


def test_norms_and_biases_are_not_decayed() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    settings = OptimizerConfig.model_validate({"weight_decay": 0.1, "betas": [0.9, 0.95]})
    matrices, vectors = build_optimizer(model, settings).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1, 1, 1]
    assert (matrices["betas"], matrices["fused"]) == ((0.9, 0.95), True)


def test_any_torch_optimizer_can_be_named() -> None:
    settings = OptimizerConfig.model_validate({"_target_": "torch.optim.SGD", "momentum": 0.9})
    optimizer = build_optimizer(nn.Linear(2, 2), settings)
    assert isinstance(optimizer, torch.optim.SGD)
    assert optimizer.param_groups[0]["momentum"] == 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"momentum": 0.9}, r"optimizer\.momentum: torch\.optim\.AdamW takes no such argument"),
        ({"_target_": "torch.optim.Adamw"}, r"torch\.optim has no 'Adamw'"),
        ({"_target_": "no_such_package.X"}, r"got 'no_such_package\.X'"),
        ({"betas": [1.5, 0.9]}, r"optimizer: torch\.optim\.AdamW: Invalid beta"),
        ({"_target_": "torch.nn.Identity"}, r"is no torch\.optim\.Optimizer"),
    ],
)
def test_wrong_optimizer_is_refused_with_its_key(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_optimizer(nn.Linear(2, 2), OptimizerConfig.model_validate(settings))


def test_component_with_a_broken_import_names_what_it_needs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "needs_more.py").write_text("import a_package_that_is_not_here\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"No module named .a_package_that_is_not_here"):
        load_component("needs_more.Thing", "model._target_")


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", 989e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA L40", None),
        ("NVIDIA GB200", 2500e12),
        ("Some Future GPU", None),
    ],
)
def test_peak_is_known_by_whole_product_names_only(name: str, peak: float | None) -> None:
    assert peak_of(name) == peak


def test_cpu_has_no_peak_and_so_no_mfu() -> None:
    assert peak_flops(torch.device("cpu"), "bfloat16") is None
    assert memory_bytes(torch.device("cpu")) > 2**20


def test_work_counts_head_by_labels_and_attention_by_pairs() -> None:
    work = work_of(tiny())
    parameters = sum(p.numel() for p in tiny().parameters())
    assert work.head_parameters == 50 * 16
    assert work.block_parameters == parameters - 2 * 50 * 16
    assert work.attention == 2 * 4 * 4
    assert work.flops(tokens=0, label_tokens=1, pairs=0) == 6 * 50 * 16
    assert work.flops(tokens=0, label_tokens=0, pairs=1) == 6 * 32


def test_random_numbers_of_a_step_depend_on_seed_step_and_rank_alone() -> None:
    def draw(seed: int, step: int, rank: int) -> float:
        reseed(seed, step, rank)
        return float(torch.rand(()))

    torch.rand(7)
    first = draw(1, 2, 3)
    assert draw(1, 2, 3) == first
    assert len({first, draw(2, 2, 3), draw(1, 3, 3), draw(1, 2, 4)}) == 4
    assert 0 <= seed_of(1, "x") < 2**63


@pytest.mark.parametrize(("model_type", "fused"), [("llama", 5), ("qwen3", 9), ("gemma", 0)])
def test_norms_are_fused_only_where_the_result_is_the_same(model_type: str, fused: int) -> None:
    model = tiny(model_type).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.5)
    ids = torch.arange(20)[None]
    with torch.no_grad():
        before = model(ids).logits
        assert fuse_norms(model) == fused
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(find_spec("liger_kernel") is not None, reason="liger-kernel is installed")
def test_missing_liger_is_refused_with_what_to_install() -> None:
    with pytest.raises(ConfigError, match=r"pip install 'submitrain\[liger\]'"):
        use_liger("llama", torch.device("cuda"))


def test_clipping_keeps_the_direction() -> None:
    from submitrain.train.optim import scale, sum_of_squares

    gradients = [torch.tensor([3.0]), torch.tensor([[4.0]])]
    norm = math.sqrt(float(sum_of_squares(gradients, torch.device("cpu"))))
    assert norm == 5.0
    scale(gradients, norm=norm, max_norm=1.0)
    assert [float(g.flatten()) for g in gradients] == pytest.approx([0.6, 0.8])
    scale(gradients, norm=1.0, max_norm=None)
    assert [float(g.flatten()) for g in gradients] == pytest.approx([0.6, 0.8])
