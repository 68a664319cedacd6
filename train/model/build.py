"""Building the model of a run: architecture, attention, LoRA adapters, shards, weights."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import structlog
import torch
from torch import nn

from submitrain.config import RunConfig
from submitrain.config.automodel import MODEL
from submitrain.config.sections import ModelConfig, PeftConfig
from submitrain.errors import ConfigError
from submitrain.imports import load_component
from submitrain.train.distributed.groups import World
from submitrain.train.model.attention import AttentionPlan, fast_16_bit, plan_attention, register
from submitrain.train.model.loss import LanguageModel, chunked_head
from submitrain.train.model.shard import ShardPolicy, fuse_norms, shard, shard_policy, use_liger
from submitrain.train.model.weights import (
    allocate,
    copy_shard,
    initialise,
    load_pretrained,
    model_folder,
    parameters_on_meta,
    seed_of,
)

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase


log = structlog.get_logger(__name__)


@dataclass(frozen=True)
class Built:
    """A sharded model; ``fill_weights`` or a checkpoint gives its parameters their values."""

    language_model: LanguageModel
    policy: ShardPolicy
    attention: AttentionPlan
    hf_config: PretrainedConfig
    folder: Path | None
    """Files of the pretrained model; None for random weights."""
    parameters: int
    """Parameters of the base model; tied ones count once."""
    has_values: bool
    """Whether a user's builder has filled it already."""

    @property
    def module(self) -> nn.Module:
        """The sharded Hugging Face model."""
        return self.language_model.module


def build_model(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    world: World,
    *,
    local_rank: int,
    accumulation: int,
) -> Built:
    """Build and shard the model of ``config``; its parameters hold no meaningful values yet.

    Raises:
        ConfigError: a model that does not exist, does not fit the tokenizer, or cannot do what an
            option asks for.
    """
    settings = config.model
    custom = None if settings.target == MODEL else custom_model(settings, config.seed)
    folder = None
    if custom is None and settings.pretrained_model_name_or_path is not None:
        folder = model_folder(settings, world, local_rank)
    hf_config = custom.config if custom is not None else model_config(settings, folder, tokenizer)
    if settings.use_liger_kernel:
        use_liger(hf_config.model_type, world.device)
    attention = plan_attention(
        settings.attn_implementation, hf_config, world.device, settings.torch_dtype
    )
    if world.rank == 0:
        _log_attention(attention, settings, world.device)
    if custom is None:
        model = skeleton(settings, hf_config, attention)
    else:
        model = custom
        register()
        model.set_attn_implementation(attention.implementation)
    if folder is not None and (folder / "generation_config.json").exists():
        from transformers import GenerationConfig

        model.generation_config = GenerationConfig.from_pretrained(folder)
    parameters = sum(p.numel() for p in model.parameters())
    if config.peft is not None:
        base = settings.pretrained_model_name_or_path
        add_adapters(model, config.peft, base=base, on_meta=custom is None)
    fuse_norms(model)
    head = chunked_head(model, hf_config.get_text_config().vocab_size)
    policy = shard_policy(config, parameters, accumulation, world.device)
    shard(model, config, world, policy)
    allocate(model, world.device)
    model.tie_weights()
    model.train()
    return Built(
        language_model=LanguageModel(model, attention.layout, head),
        policy=policy,
        attention=attention,
        hf_config=hf_config,
        folder=folder,
        parameters=parameters,
        has_values=custom is not None,
    )


def fill_weights(built: Built, config: RunConfig, world: World) -> None:
    """Give every parameter its value at step 0: pretrained, or a function of the seed."""
    model = built.module
    if built.folder is not None:
        load_pretrained(model, built.folder, config.model, world)
    elif not built.has_values:
        twin = skeleton(config.model, copy.deepcopy(built.hf_config), built.attention)
        initialise(model, twin, config.seed)
    if config.peft is not None:
        initialise_adapters(model, config.seed)


def model_config(
    settings: ModelConfig, folder: Path | None, tokenizer: PreTrainedTokenizerBase
) -> PretrainedConfig:
    """The Hugging Face config: of the pretrained model, or inline with what the tokenizer says.

    Raises:
        ConfigError: neither is given, an unknown model type, or a vocabulary smaller than the
            tokenizer's.
    """
    from transformers import AutoConfig

    if folder is not None:
        hf_config = AutoConfig.from_pretrained(folder, trust_remote_code=settings.trust_remote_code)
    elif settings.config is not None:
        hf_config = _inline_config(settings.config, tokenizer)
    else:
        raise ConfigError(
            "model: expected pretrained_model_name_or_path (a hub name or folder) or config "
            "(model_type and sizes, random weights), got neither"
        )
    vocabulary = hf_config.get_text_config().vocab_size
    if len(tokenizer) > vocabulary:
        raise ConfigError(
            f"model: the tokenizer has {len(tokenizer)} tokens, the model's vocabulary only "
            f"{vocabulary}; use the model's own tokenizer, or a larger model.config.vocab_size"
        )
    return hf_config


def _inline_config(inline: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> PretrainedConfig:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    values = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        **inline,
    }
    model_type = values.pop("model_type", None)
    if model_type not in CONFIG_MAPPING:
        raise ConfigError(
            f"model.config.model_type: expected a Hugging Face model type such as llama, qwen3 or "
            f"gpt2, got {model_type!r}"
        )
    return AutoConfig.for_model(model_type, **values)


def skeleton(
    settings: ModelConfig, hf_config: PretrainedConfig, attention: AttentionPlan
) -> PreTrainedModel:
    """The model's modules: parameters on the meta device in float32, buffers real."""
    from transformers import AutoModelForCausalLM

    register()
    with parameters_on_meta():
        return AutoModelForCausalLM.from_config(
            hf_config,
            dtype=torch.float32,
            attn_implementation=attention.implementation,
            trust_remote_code=settings.trust_remote_code,
        )


def custom_model(settings: ModelConfig, seed: int) -> PreTrainedModel:
    """What the user's own builder returns; every rank builds it whole, from the same seed.

    Raises:
        ConfigError: it is no Hugging Face causal LM.
    """
    from transformers import PreTrainedModel

    builder = load_component(settings.target, "model._target_")
    given = settings.model_dump(include={"pretrained_model_name_or_path", "config"})
    torch.manual_seed(seed)
    model = builder(**{k: v for k, v in given.items() if v is not None}, **settings.extra)
    if not isinstance(model, PreTrainedModel) or model.get_output_embeddings() is None:
        raise ConfigError(
            f"model._target_: {settings.target} returned {type(model).__name__}; expected a "
            "transformers PreTrainedModel with an output head (a causal LM)"
        )
    return model.float()


def _log_attention(attention: AttentionPlan, settings: ModelConfig, device: torch.device) -> None:
    log.info(
        "attention",
        implementation=attention.implementation,
        layout=str(attention.layout),
        why=attention.why,
    )
    if settings.torch_dtype == "bfloat16" and not fast_16_bit(device):
        log.warning(
            "slow_bfloat16",
            why="this CPU has no bfloat16 arithmetic, torch emulates it",
            next_step="model.torch_dtype: float32",
        )


def add_adapters(
    model: nn.Module, settings: PeftConfig, *, base: str | None, on_meta: bool
) -> None:
    """Freeze ``model`` and put adapters into it, ``on_meta`` as its own parameters are.

    ``base`` is the base model's name or folder, for whoever loads the adapter.

    Raises:
        ConfigError: peft is missing, or no module has one of the configured names.
    """
    if not find_spec("peft"):
        raise ConfigError("peft: the package peft is not installed; pip install 'submitrain[peft]'")
    from peft import LoraConfig, inject_adapter_in_model

    lora = LoraConfig(
        r=settings.dim,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        task_type="CAUSAL_LM",
        base_model_name_or_path=base,
    )
    try:
        inject_adapter_in_model(lora, model, low_cpu_mem_usage=on_meta)
    except ValueError as error:
        raise ConfigError(f"peft.target_modules: {error}") from error
    model.peft_config = {"default": lora}  # type: ignore[assignment]
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name)


@torch.no_grad()
def initialise_adapters(model: nn.Module, seed: int) -> None:
    """A as peft starts it (Kaiming uniform, a = sqrt 5), B zero: at first nothing changes."""
    for name, parameter in model.named_parameters():
        if ".lora_" not in name:
            continue
        value = torch.zeros(parameter.shape)
        if ".lora_A." in name or ".lora_embedding_B." in name:
            generator = torch.Generator().manual_seed(seed_of(seed, "lora", name))
            nn.init.kaiming_uniform_(value, a=math.sqrt(5), generator=generator)
        copy_shard(parameter, value)
