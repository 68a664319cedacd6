"""LoRA: small trainable adapters inside a frozen model, through the peft package."""

from __future__ import annotations

import math
from importlib.util import find_spec

import torch
from torch import nn

from train.config.sections import PeftConfig
from train.errors import ConfigError
from train.weights import copy_shard, seed_of


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
