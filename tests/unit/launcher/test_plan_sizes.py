"""Estimates held against the real thing: transformers' models and torch's optimizers."""

from __future__ import annotations

import inspect
import io
import json
import sys
from typing import Any

import pytest

from submitrain.launcher.plan import probe
from submitrain.launcher.plan.memory import (
    checkpoint_bytes,
    gpu_memory_bytes,
    model_size,
    rank_memory,
)
from submitrain.launcher.plan.targets import (
    OPTIMIZERS,
    TORCH_OPTIMIZERS,
    TargetReport,
    check_targets,
)
from tests.config_parts import load

_SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "vocab_size": 100,
}
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT2 = {"n_embd": 64, "n_layer": 3, "n_head": 4, "vocab_size": 100}


def count(config: dict[str, Any]) -> int:
    """Parameters of the model that transformers builds."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        values = {k: v for k, v in config.items() if k != "model_type"}
        model = AutoModelForCausalLM.from_config(
            AutoConfig.for_model(config["model_type"], **values)
        )
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3"])
@pytest.mark.parametrize(
    "values",
    [
        _GROUPED,
        {**_GROUPED, "tie_word_embeddings": True, "attention_bias": True, "mlp_bias": True},
        {"num_hidden_layers": 1},
    ],
    ids=["plain", "tied with biases", "defaults"],
)
def test_parameters_are_counted_as_transformers_does(kind: str, values: dict[str, Any]) -> None:
    config = {"model_type": kind, **values}
    size = model_size(config)
    assert size is not None and size.parameters == count(config)


@pytest.mark.parametrize(
    "values", [_GPT2, {**_GPT2, "n_inner": 80, "tie_word_embeddings": False}, {}]
)
def test_parameters_of_gpt2(values: dict[str, Any]) -> None:
    config = {"model_type": "gpt2", **values}
    size = model_size(config)
    assert size is not None and size.parameters == count(config)


def test_an_unknown_family_has_no_size() -> None:
    assert model_size({"model_type": "mixtral"}) is None
    assert model_size({}) is None
    assert model_size({"model_type": "llama", "hidden_size": "big"}) is None


def test_the_vocabulary_is_the_tokenizers_where_the_config_has_none() -> None:
    size = model_size({"model_type": "llama"}, vocab_size=500)
    assert size is not None and size.vocab_size == 500


def test_adapters_are_counted_as_peft_does() -> None:
    import torch
    from peft import LoraConfig, inject_adapter_in_model
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **_GROUPED))
    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    inject_adapter_in_model(lora, model)
    size = model_size({"model_type": "llama", **_GROUPED})
    assert size is not None
    adapters = sum(p.numel() for name, p in model.named_parameters() if ".lora_" in name)
    assert size.adapters(4, "all-linear") == adapters


def test_a_checkpoint_takes_twelve_bytes_a_parameter() -> None:
    size = model_size({"model_type": "llama"})
    assert size is not None
    assert checkpoint_bytes(load().config, size) == 12 * size.parameters


def test_memory_of_a_rank_falls_with_more_shards() -> None:
    size = model_size({"model_type": "llama"})
    assert size is not None
    one = rank_memory(load().config, size, on_gpu=True)
    eight = rank_memory(load({"slurm": {"nodes": 8}}).config, size, on_gpu=True)
    replicated = rank_memory(
        load({"slurm": {"nodes": 8}, "distributed": {"dp_replicate_size": 8}}).config,
        size,
        on_gpu=True,
    )
    assert one.parameters == 4 * size.parameters == 8 * eight.parameters
    assert one.optimizer == 8 * size.parameters
    assert replicated.parameters == one.parameters


def test_checkpointing_activations_saves_most_of_them() -> None:
    size = model_size({"model_type": "llama"})
    assert size is not None
    kept = rank_memory(load().config, size, on_gpu=True)
    on = {"training_optimizations": {"activation_checkpointing": True}}
    recomputed = rank_memory(load(on).config, size, on_gpu=True)
    assert kept.activations > 10 * recomputed.activations


def test_deferring_the_gradient_reduction_keeps_whole_gradients() -> None:
    size = model_size({"model_type": "llama"})
    assert size is not None
    sections = {"slurm": {"nodes": 4}, "step_scheduler": {"grad_acc_steps": 2}}
    deferred, reduced = (
        rank_memory(
            load({**sections, "distributed": {"defer_grad_sync": value}}).config, size, on_gpu=True
        )
        for value in (True, False)
    )
    assert deferred.gradients == 4 * reduced.gradients == 4 * size.parameters


@pytest.mark.parametrize(
    ("name", "gb"),
    [("h100", 80), ("nvidia_h100_80gb_hbm3", 80), ("a100_40gb", 40), ("H200", 141), ("l4", 24)],
)
def test_memory_of_gpu_types(name: str, gb: int) -> None:
    assert gpu_memory_bytes(name) == gb * 10**9


def test_memory_of_an_unknown_gpu_is_unknown() -> None:
    assert gpu_memory_bytes("quantum") is None


@pytest.mark.parametrize("path", OPTIMIZERS)
def test_the_table_of_optimizer_arguments_is_torchs(path: str) -> None:
    import torch

    signature = inspect.signature(getattr(torch.optim, path.rpartition(".")[2]))
    assert set(OPTIMIZERS[path]) | {"lr", "params"} == set(signature.parameters)


def test_another_optimizer_is_looked_at_in_a_process_of_its_own() -> None:
    from submitrain.config import RunConfig

    chosen = {"_target_": "torch.optim.RMSprop", "momentun": 1}
    report = check_targets(RunConfig.model_validate({"optimizer": chosen}))
    assert len(report.problems) == 1 and "did you mean momentum?" in report.problems[0]


@pytest.mark.parametrize(
    ("path", "arguments", "says"),
    [
        ("torch.optim.RMSprop", {"alpha": 0.9}, None),
        ("torch.optim.RMSprop", {"alpha": -1}, "refuses its arguments"),
        ("torch.optim.Adamm", {}, "did you mean Adam?"),
        ("torch.nn.Linear", {}, "expected a subclass of torch.optim.Optimizer"),
        ("torch.optim.LBFGS", {}, "one gradient a step"),
        ("no_such_package.Adam", {}, "no module 'no_such_package' is installed"),
    ],
)
def test_what_that_process_says_of_optimizers(
    path: str,
    arguments: dict[str, Any],
    says: str | None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Without starting one: each would import torch once more."""
    slot = {"section": "optimizer", "kind": "optimizer", "path": path, "arguments": arguments}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([slot])))
    monkeypatch.setattr("sys.path", list(sys.path))
    assert probe.main() == 0
    problems = json.loads(capsys.readouterr().out.partition("@probe ")[2])["problems"]
    if says is None:
        assert problems == []
    else:
        assert len(problems) == 1 and says in problems[0]


def test_the_list_of_optimizers_for_machines_without_torch_is_torchs() -> None:
    import torch

    found = {name for name, one in vars(torch.optim).items() if isinstance(one, type)}
    assert set(TORCH_OPTIMIZERS) == found - {"Optimizer"}


@pytest.mark.parametrize(("name", "refused"), [("AdamX", True), ("RAdam", False)])
@pytest.mark.parametrize("why", ["no torch here", "ranks in a container"])
def test_an_optimizer_that_torch_does_not_have_is_refused_without_torch(
    why: str, name: str, refused: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    from submitrain.config import RunConfig

    sections: dict[str, Any] = {"optimizer": {"_target_": f"torch.optim.{name}"}}
    if why == "no torch here":
        monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
        monkeypatch.setattr("submitrain.launcher.plan.targets._probe", lambda *_: TargetReport())
    else:
        sections["slurm"] = {"container_image": "/images/a.sqsh"}
    report = check_targets(RunConfig.model_validate(sections))
    expected = f"optimizer._target_: torch.optim has no '{name}'; did you mean Adam"
    assert bool(report.problems) == refused
    assert not refused or report.problems[0].startswith(expected)
