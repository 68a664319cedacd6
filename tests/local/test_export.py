"""The exported folder is what Hugging Face's own loaders read, tensor for tensor."""

from __future__ import annotations

import json
import resource
import signal
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from submitrain.errors import CheckpointError
from submitrain.train.checkpoint.hf_weights import Pretrained
from submitrain.train.checkpoint.manifest import TrainState, verify
from submitrain.train.export import export_pretrained, generate_sample
from tests.checkpoint_models import (
    VOCABULARY,
    adamw,
    checkpointer,
    llama,
    shard,
    train_steps,
    whole,
)
from tests.checkpoint_ranks import Rank, run_ranks

pytestmark = pytest.mark.ranks


def make_tokenizer() -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {f"w{index}": index for index in range(VOCABULARY - 2)}
    vocabulary = {**words, "<unk>": VOCABULARY - 2, "<eos>": VOCABULARY - 1}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>", unk_token="<unk>")


def full_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: whole(parameter.detach()) for name, parameter in model.named_parameters()}


def export(rank: Rank, folder: Path, options: dict[str, Any]) -> dict[str, torch.Tensor] | None:
    """Train a little, export, and return rank 0's view of the whole weights."""
    model = shard(options.get("build", llama)(**options.get("model", {})), rank.world_size)
    train_steps(model, adamw(model))
    size = export_pretrained(
        model,
        make_tokenizer(),
        folder,
        dtype=options.get("dtype"),
    )
    assert size == sum(path.stat().st_size for path in folder.rglob("*"))
    weights = full_weights(model)
    return {name: t.numpy() for name, t in weights.items()} if rank.index == 0 else None


def load(folder: Path, **options: Any) -> dict[str, torch.Tensor]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, **options)
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def exported(tmp_path: Path, world_size: int = 2, **options: Any) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path / "export"
    results = run_ranks(world_size, export, tmp_path / "run", folder, options)
    return folder, {name: torch.from_numpy(array) for name, array in results[0].items()}


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_from_pretrained_gives_the_trained_tensors(tmp_path: Path, tied: bool) -> None:
    folder, trained = exported(tmp_path, model={"tied": tied})
    loaded = load(folder)
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def test_a_large_model_is_several_files_and_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("submitrain.train.checkpoint.hf_weights.MAX_FILE_BYTES", 4096)
    model, folder = llama(), tmp_path / "export"
    export_pretrained(model, None, folder)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = {path.name for path in folder.glob("model-*.safetensors")}
    assert set(index["weight_map"].values()) == files
    assert len(files) >= 3
    loaded = load(folder)
    assert all(torch.equal(loaded[name], p) for name, p in model.named_parameters())


def test_weights_are_converted_and_the_config_says_so(tmp_path: Path) -> None:
    folder, trained = exported(tmp_path, dtype=torch.bfloat16)
    assert json.loads((folder / "config.json").read_text())["dtype"] == "bfloat16"
    loaded = load(folder)
    assert all(torch.equal(loaded[name], trained[name].bfloat16()) for name in trained)


def test_the_config_names_the_class_that_was_sharded(tmp_path: Path) -> None:
    folder, _ = exported(tmp_path, world_size=1)
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def mixtral(**_: Any) -> nn.Module:
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    return MixtralForCausalLM(
        MixtralConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            num_local_experts=3,
        )
    )


def test_a_mixture_of_experts_comes_back_from_its_export(tmp_path: Path) -> None:
    folder, trained = exported(tmp_path, build=mixtral)
    loaded = load(folder)
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], trained[name]) for name in trained)


def lora(**_: Any) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # peft 0.21 asks transformers an old way
        return get_peft_model(llama(), config)


def with_adapter(base: nn.Module, folder: Path) -> dict[str, torch.Tensor]:
    from peft import PeftModel

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = PeftModel.from_pretrained(base, folder)
    return {name: p.detach() for name, p in model.named_parameters() if "lora_" in name}


def test_an_adapter_is_exported_alone_and_peft_loads_it(tmp_path: Path) -> None:
    folder, trained = exported(tmp_path, build=lora)
    adapter = {name: tensor for name, tensor in trained.items() if "lora_" in name}
    loaded = with_adapter(llama(), folder)
    assert loaded.keys() == adapter.keys()
    assert all(torch.equal(loaded[name], adapter[name]) for name in adapter)
    assert not list(folder.glob("model*.safetensors"))


def test_an_older_export_is_replaced_whole(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "leftover.txt").write_text("old")
    exported(tmp_path, world_size=1)
    assert not (folder / "leftover.txt").exists()
    assert [path.name for path in tmp_path.iterdir() if "export" in path.name] == ["export"]


def export_without_room(rank: Rank, folder: Path) -> str:
    model = shard(llama(), rank.world_size)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if rank.index == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
    try:
        export_pretrained(model, None, folder)
    except CheckpointError as error:
        return str(error)
    return "exported"


def test_an_export_that_fails_leaves_the_older_one(tmp_path: Path) -> None:
    folder = tmp_path / "export"
    folder.mkdir()
    (folder / "config.json").write_text("old")
    results = run_ranks(2, export_without_room, tmp_path / "run", folder)
    assert all("was not exported: rank 0: OSError" in result for result in results)
    assert [path.name for path in folder.iterdir()] == ["config.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["export", "run"]


def test_a_single_process_without_process_group_exports_too(tmp_path: Path) -> None:
    model = llama()
    export_pretrained(model, None, tmp_path / "export")
    loaded = load(tmp_path / "export")
    assert all(torch.equal(loaded[name], p) for name, p in model.named_parameters())


def test_a_sample_is_the_models_own_greedy_continuation(tmp_path: Path) -> None:
    model = llama()
    export_pretrained(model, make_tokenizer(), tmp_path / "export")
    tokens = [3, 1, 4]
    for _ in range(8):
        logits = model(input_ids=torch.tensor([tokens])).logits
        tokens.append(int(logits[0, -1].argmax()))
    expected = " ".join(f"w{token}" for token in tokens[3:])
    assert generate_sample(tmp_path / "export", "w3 w1 w4", 8) == expected


CUSTOM_CONFIG = """
from transformers import LlamaConfig

class OwnConfig(LlamaConfig):
    model_type = "own-llama"
"""
CUSTOM_MODEL = """
from transformers import LlamaForCausalLM
from .configuration_own import OwnConfig

class OwnForCausalLM(LlamaForCausalLM):
    config_class = OwnConfig
"""


def test_a_model_with_code_of_its_own_writes_a_sample_where_that_is_trusted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "export"
    export_pretrained(llama(), make_tokenizer(), folder)
    expected = generate_sample(folder, "w3 w1 w4", 8)
    (folder / "configuration_own.py").write_text(CUSTOM_CONFIG)
    (folder / "modeling_own.py").write_text(CUSTOM_MODEL)
    config = json.loads((folder / "config.json").read_text())
    classes = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoModelForCausalLM": "modeling_own.OwnForCausalLM",
    }
    own = {"model_type": "own-llama", "architectures": ["OwnForCausalLM"], "auto_map": classes}
    (folder / "config.json").write_text(json.dumps({**config, **own}))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "m"))
    assert generate_sample(folder, "w3 w1 w4", 8, trust_remote_code=True) == expected
    with pytest.raises(ValueError, match="trust_remote_code"):
        generate_sample(folder, "w3 w1 w4", 8)


def test_a_sample_draws_no_progress_bar(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    export_pretrained(llama(), make_tokenizer(), tmp_path / "export")
    capfd.readouterr()
    generate_sample(tmp_path / "export", "w3 w1 w4", 8)
    assert "".join(capfd.readouterr()) == ""


def save_with_pretrained(rank: Rank, options: dict[str, Any]) -> dict[str, Any] | None:
    model = shard(options.get("build", llama)(), rank.world_size)
    optimizer = adamw(model)
    saver = checkpointer(
        rank,
        Pretrained(make_tokenizer()),
        save_consolidated="every",
        model_save_format=options.get("format", "safetensors"),
    )
    train_steps(model, optimizer)
    saver.save(model, optimizer, TrainState(step=2), wait=False)
    weights = {name: tensor.numpy() for name, tensor in full_weights(model).items()}
    train_steps(model, optimizer)
    saver.close()
    return weights if rank.index == 0 else None


@pytest.mark.parametrize("model_format", ["safetensors", "torch_save"])
def test_every_checkpoint_can_hold_a_folder_for_from_pretrained(
    tmp_path: Path, model_format: str
) -> None:
    trained = run_ranks(2, save_with_pretrained, tmp_path, {"format": model_format})[0]
    checkpoint = tmp_path / "checkpoints/latest"
    assert verify(checkpoint) == []
    loaded = load(checkpoint / "pretrained")
    assert loaded.keys() == trained.keys()
    assert all(torch.equal(loaded[name], torch.from_numpy(trained[name])) for name in trained)


def test_a_checkpoint_of_an_adapter_can_hold_it_in_pefts_form(tmp_path: Path) -> None:
    trained = run_ranks(2, save_with_pretrained, tmp_path, {"build": lora})[0]
    checkpoint = tmp_path / "checkpoints/latest"
    loaded = with_adapter(llama(), checkpoint / "pretrained")
    assert loaded
    assert all(torch.equal(loaded[name], torch.from_numpy(trained[name])) for name in loaded)
    base_bytes = sum(p.nbytes for p in llama().parameters())
    assert sum(path.stat().st_size for path in checkpoint.glob("model/*")) < base_bytes
