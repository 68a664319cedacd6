"""What is known of the hardware: peak arithmetic of GPUs, and how much memory a rank has used."""

from __future__ import annotations

import re
import resource
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# Dense bf16 with fp32 accumulation, in FLOP/s, from the vendors' data sheets (NVIDIA; AMD CDNA 2
# and 3 white papers). First match wins, whole words only.
_PEAKS: tuple[tuple[str, float], ...] = (
    ("GB200", 2500e12),
    ("B200", 2250e12),
    ("H200", 989e12),
    ("H100 NVL", 835e12),
    ("H100 PCIe", 756e12),
    ("H100", 989e12),
    ("A100", 312e12),
    ("A10", 125e12),
    ("L40S", 362e12),
    ("L4", 121e12),
    ("A6000", 155e12),
    ("MI300X", 1307e12),
    ("MI250X", 191.5e12),
)


def peak_flops(device: torch.device, dtype: str) -> float | None:
    """Peak FLOP/s of this device in 16-bit arithmetic; None where it is not known, as on CPUs."""
    if device.type != "cuda" or dtype not in {"bfloat16", "float16"}:
        return None
    return peak_of(torch.cuda.get_device_name(device))


def peak_of(name: str) -> float | None:
    """Peak of a GPU by its product name (``NVIDIA H100 80GB HBM3``), in FLOP/s."""
    return next((peak for key, peak in _PEAKS if re.search(rf"\b{key}\b", name)), None)


@dataclass(frozen=True)
class Work:
    """Arithmetic of a training step (forward and backward), as in the PaLM paper, appendix B.

    Frozen parameters of LoRA need no weight gradient: their share is an over-estimate by a third.
    """

    block_parameters: int
    head_parameters: int
    attention: int
    """Layers x heads x head size."""

    def flops(self, *, tokens: int, label_tokens: int, pairs: int) -> float:
        """Floating-point operations; the head runs on label tokens, attention is causal."""
        dense = self.block_parameters * tokens + self.head_parameters * label_tokens
        return 6.0 * dense + 6.0 * self.attention * pairs


def work_of(model: PreTrainedModel) -> Work:
    """What a step of ``model`` computes for every token."""
    embeddings, head = model.get_input_embeddings(), model.get_output_embeddings()
    counted = {id(p) for m in (embeddings, head) for p in m.parameters()}
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    return Work(
        block_parameters=sum(p.numel() for p in model.parameters() if id(p) not in counted),
        head_parameters=sum(p.numel() for p in head.parameters()),
        attention=config.num_hidden_layers * heads * head_dim,
    )


def memory_bytes(device: torch.device) -> int:
    """Most memory this rank has held: allocated by torch on a GPU, resident on a CPU, in bytes."""
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def describe(device: torch.device) -> str:
    """The device's name for records: ``cpu`` or the GPU's product name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
