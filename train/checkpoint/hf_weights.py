"""Whole tensors as the folder that ``from_pretrained`` reads; one tensor in memory at a time.

The safetensors format (github.com/huggingface/safetensors, README): eight bytes with the header's
length, a JSON header with type, shape and byte range of each tensor, then the bytes. Written here
by hand because the library wants all tensors of a file in memory at once.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

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

Fetch = Callable[[str], torch.Tensor]
"""From a tensor's name in the model to the whole tensor in host memory."""


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

    def header(self) -> bytes:
        """The file's first bytes; the tensors' bytes follow in order without gaps."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        offset = 0
        for weight in self.weights:
            entries[weight.name] = {
                "dtype": _TYPE_NAMES[weight.dtype],
                "shape": list(weight.shape),
                "data_offsets": [offset, offset + weight.nbytes],
            }
            offset += weight.nbytes
        text = json.dumps(entries).encode()
        text += b" " * (-len(text) % 8)
        return len(text).to_bytes(8, "little") + text


def write_tensor(file: BinaryIO, weight: Weight, tensor: torch.Tensor) -> None:
    """Append one tensor's bytes, converted to the type the header promised."""
    assert tuple(tensor.shape) == weight.shape, (weight, tensor.shape)
    flat = tensor.detach().to(device="cpu", dtype=weight.dtype).contiguous().reshape(-1)
    file.write(flat.view(torch.uint8).numpy().data)


def write_index(folder: Path, files: Sequence[WeightFile], stem: str) -> None:
    """Write the index that tells which tensor is in which file, if there are several files."""
    if len(files) == 1:
        return
    weight_map = {weight.name: file.name for file in files for weight in file.weights}
    total = sum(weight.nbytes for file in files for weight in file.weights)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


def split(weights: Iterable[Weight], *, stem: str, max_bytes: float) -> list[WeightFile]:
    """Distribute tensors over files of at most ``max_bytes`` each, or of one tensor."""
    parts: list[list[Weight]] = [[]]
    size = 0
    for weight in weights:
        if parts[-1] and size + weight.nbytes > max_bytes:
            parts.append([])
            size = 0
        parts[-1].append(weight)
        size += weight.nbytes
    if len(parts) == 1:
        return [WeightFile(f"{stem}.safetensors", tuple(parts[0]))]
    return [
        WeightFile(f"{stem}-{number:05d}-of-{len(parts):05d}.safetensors", tuple(part))
        for number, part in enumerate(parts, 1)
    ]


@dataclass(frozen=True)
class Layout:
    """What the folder of one model consists of."""

    weights: tuple[Weight, ...]
    """Widest types first, so that every tensor starts at a multiple of its element size."""
    stem: str
    """``model``, or ``adapter_model`` for a LoRA adapter."""
    describe: Callable[[Path], None]
    """Writes config, generation config and tokenizer."""

    def files(self, parts: int = 1) -> list[WeightFile]:
        """Weight files, ``parts`` or more of them; an adapter is always one file."""
        if self.stem == ADAPTER_STEM:
            return split(self.weights, stem=self.stem, max_bytes=math.inf)
        total = sum(weight.nbytes for weight in self.weights)
        limit = min(MAX_FILE_BYTES, math.ceil(total / parts))
        return split(self.weights, stem=self.stem, max_bytes=limit)

    def write(self, folder: Path, fetch: Fetch) -> None:
        """Write everything from one process."""
        files = self.files()
        for file in files:
            with (folder / file.name).open("wb") as stream:
                stream.write(file.header())
                for weight in file.weights:
                    write_tensor(stream, weight, fetch(weight.source))
        write_index(folder, files, self.stem)
        self.describe(folder)


@dataclass(frozen=True)
class Pretrained:
    """How models are written for ``from_pretrained``.

    ``dtype`` is what floating-point weights are converted to; None keeps the master weights' type.
    The recipe passes the compute type: training's forward pass rounded the float32 masters to it in
    every step, so nothing is lost that any forward pass has seen.
    """

    tokenizer: Any = None
    dtype: torch.dtype | None = None
    extra_files: Mapping[str, str] = field(default_factory=dict)
    """Further text files, name to content."""

    def layout(self, model: nn.Module) -> Layout:
        """Layout for ``model``; holds copies, so that training may change what it likes."""
        tensors = model_tensors(model)
        names = adapter_names(model, tensors) if adapter_only(model) else dict.fromkeys(tensors)
        unordered = [
            Weight(source, name or source, tuple(tensor.shape), self._dtype(tensor))
            for source, name in names.items()
            for tensor in [tensors[source]]
        ]
        weights = tuple(sorted(unordered, key=lambda weight: -weight.dtype.itemsize))
        if adapter_only(model):
            return Layout(weights, ADAPTER_STEM, self._describer(adapter_config(model)))
        return Layout(
            weights,
            "model",
            self._describer(_model_config(model, self.dtype), _generation_config(model)),
        )

    def _dtype(self, tensor: torch.Tensor) -> torch.dtype:
        return self.dtype if self.dtype and tensor.is_floating_point() else tensor.dtype

    def _describer(self, *parts: Any) -> Callable[[Path], None]:
        def describe(folder: Path) -> None:
            for part in (*parts, self.tokenizer):
                if part is not None:
                    part.save_pretrained(str(folder))
            for name, text in self.extra_files.items():
                (folder / name).write_text(text)

        return describe


def adapter_names(model: nn.Module, tensors: Mapping[str, torch.Tensor]) -> dict[str, str]:
    """Names of the trained tensors in the model to those that peft gives them in a file."""
    from peft import get_peft_model_state_dict

    marks = {name: torch.empty(0) for name in tensors}
    named = get_peft_model_state_dict(model, state_dict=dict(marks), save_embedding_layers=False)
    by_mark = {id(mark): name for name, mark in marks.items()}
    return {by_mark[id(mark)]: _peft_name(name) for name, mark in named.items()}


def _peft_name(name: str) -> str:
    """The name under which PeftModel looks for it; those of an injected adapter lack its prefix."""
    prefix = "base_model.model."
    return name if name.startswith(prefix) else prefix + name


def adapter_config(model: Any) -> Any:
    """Copy of the active adapter's configuration, marked for inference."""
    name = getattr(model, "active_adapter", None)  # an injected adapter has no PeftModel around it
    config = copy.deepcopy(model.peft_config[name if isinstance(name, str) else "default"])
    config.inference_mode = True
    return config


def _model_config(model: Any, dtype: torch.dtype | None) -> Any:
    """Copy of the model's config with the type of the written weights and the model's class.

    FSDP2 puts its own name before the class's name.
    """
    config = copy.deepcopy(model.config)
    config.dtype = dtype or next(model.parameters()).dtype
    config.architectures = [type(model).__name__.removeprefix("FSDP")]
    return config


def _generation_config(model: Any) -> Any:
    return copy.deepcopy(getattr(model, "generation_config", None))
