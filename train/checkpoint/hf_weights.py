"""Whole tensors as the folder that ``from_pretrained`` reads; one tensor in memory at a time.

The safetensors format (github.com/huggingface/safetensors, README): eight bytes with the header's
length, a JSON header with type, shape and byte range of each tensor, then the bytes. Written here
by hand because the library wants all tensors of a file in memory at once.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from submitrain.train.checkpoint.tensors import adapter_only, model_tensors

MAX_FILE_BYTES = 5 * 10**9
ADAPTER_STEM = "adapter_model"
_TYPE_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Weight:
    """One tensor to write."""

    source: str
    """Its name in the model."""
    name: str
    """Its name in the file."""
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size in the file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file and its tensors in the order in which they are written."""

    name: str
    weights: tuple[Weight, ...]

    def write(self, path: Path, fetch: Callable[[str], torch.Tensor]) -> None:
        """Write the header, then the tensors' bytes in order without gaps, each as it is fetched.

        ``fetch`` gives the whole tensor by its name in the model.
        """
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for weight in self.weights:
            entries[weight.name] = {
                "dtype": _TYPE_NAMES[weight.dtype],
                "shape": list(weight.shape),
                "data_offsets": [offset, offset + weight.nbytes],
            }
            offset += weight.nbytes
        header = json.dumps(entries).encode()
        header += b" " * (-len(header) % 8)
        with path.open("wb") as file:
            file.write(len(header).to_bytes(8, "little") + header)
            for weight in self.weights:
                tensor = fetch(weight.source).detach()
                assert tuple(tensor.shape) == weight.shape, (weight, tensor.shape)
                flat = tensor.to(device="cpu", dtype=weight.dtype).contiguous().reshape(-1)
                file.write(flat.view(torch.uint8).numpy().data)


@dataclass(frozen=True)
class Layout:
    """What the folder of one model consists of."""

    weights: tuple[Weight, ...]
    """Widest types first, so that every tensor starts at a multiple of its element size."""
    stem: str
    """``model``, or ``adapter_model`` for a LoRA adapter."""
    descriptions: tuple[Any, ...]
    """Config, generation config and tokenizer: what has ``save_pretrained``."""

    def files(self) -> list[WeightFile]:
        """Files of at most ``MAX_FILE_BYTES`` each, or of one tensor; an adapter is one file."""
        parts: list[list[Weight]] = [[]]
        size = 0
        for weight in self.weights:
            size += weight.nbytes
            if parts[-1] and size > MAX_FILE_BYTES and self.stem != ADAPTER_STEM:
                parts.append([])
                size = weight.nbytes
            parts[-1].append(weight)
        if len(parts) == 1:
            return [WeightFile(f"{self.stem}.safetensors", tuple(parts[0]))]
        return [
            WeightFile(f"{self.stem}-{number:05d}-of-{len(parts):05d}.safetensors", tuple(part))
            for number, part in enumerate(parts, 1)
        ]

    def write(self, folder: Path, fetch: Callable[[str], torch.Tensor]) -> None:
        """Write everything, and an index of which tensor is where if there are several files."""
        files = self.files()
        for file in files:
            file.write(folder / file.name, fetch)
        if len(files) > 1:
            weight_map = {weight.name: file.name for file in files for weight in file.weights}
            total = sum(weight.nbytes for weight in self.weights)
            index = {
                "metadata": {"total_size": total},
                "weight_map": dict(sorted(weight_map.items())),
            }
            text = json.dumps(index, indent=2) + "\n"
            (folder / f"{self.stem}.safetensors.index.json").write_text(text)
        for part in self.descriptions:
            part.save_pretrained(str(folder))


@dataclass(frozen=True)
class Pretrained:
    """How models are written for ``from_pretrained``.

    ``dtype`` is what floating-point weights are converted to; None keeps the master weights' type.
    The recipe passes the compute type: training's forward pass rounded the float32 masters to it in
    every step, so nothing is lost that any forward pass has seen.
    """

    tokenizer: Any = None
    dtype: torch.dtype | None = None

    def layout(self, model: nn.Module) -> Layout:
        """Layout for ``model``; holds copies, so that training may change what it likes."""
        tensors = model_tensors(model)
        is_adapter = adapter_only(model)
        names = adapter_names(model, tensors) if is_adapter else {name: name for name in tensors}
        weights = []
        for source, name in names.items():
            tensor = tensors[source]
            dtype = self.dtype if self.dtype and tensor.is_floating_point() else tensor.dtype
            weights.append(Weight(source, name, tuple(tensor.shape), dtype))
        weights.sort(key=lambda weight: -weight.dtype.itemsize)
        parts = [_adapter_config(model)] if is_adapter else _model_configs(model, self.dtype)
        described = tuple(part for part in (*parts, self.tokenizer) if part is not None)
        return Layout(tuple(weights), ADAPTER_STEM if is_adapter else "model", described)


def adapter_names(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of the trained tensors in the model to those that peft gives them in a file.

    PeftModel looks for its own prefix; names of an injected adapter lack it.
    """
    from peft import get_peft_model_state_dict

    prefix = "base_model.model."
    marks = {name: torch.empty(0) for name in tensors}
    named = get_peft_model_state_dict(model, state_dict=dict(marks), save_embedding_layers=False)
    by_mark = {id(mark): name for name, mark in marks.items()}
    return {
        by_mark[id(mark)]: name if name.startswith(prefix) else prefix + name
        for name, mark in named.items()
    }


def _adapter_config(model: Any) -> Any:
    """Copy of the active adapter's configuration, marked for inference."""
    name = getattr(model, "active_adapter", None)  # an injected adapter has no PeftModel around it
    config = copy.deepcopy(model.peft_config[name if isinstance(name, str) else "default"])
    config.inference_mode = True
    return config


def _model_configs(model: Any, dtype: torch.dtype | None) -> list[Any]:
    """Copies of the model's config, with the written weights' type, and of its generation config.

    FSDP2 puts its own name before the class's name.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype or next(model.parameters()).dtype
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    return [config, copy.deepcopy(getattr(model, "generation_config", None))]
