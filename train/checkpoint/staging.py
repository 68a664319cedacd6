"""Staging: copies of this rank's tensors that training cannot change while they are written.

The copy is the only thing training waits for. The buffers are kept for the next save, so the price
is once this rank's share of model and optimizer in host memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
from torch.distributed.tensor import DTensor


class Stager:
    """Copies tensors into host buffers that are reused from save to save.

    ``stage`` may be called again only when nobody reads the result of the last call any more.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def stage(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Copy every tensor; a DTensor stays one, with its shard in host memory."""
        local = {name: _local(tensor) for name, tensor in tensors.items()}
        self._buffers = {name: self._fitting_buffer(name, tensor) for name, tensor in local.items()}
        devices = {tensor.device for tensor in local.values() if tensor.device.type != "cpu"}
        for name, tensor in local.items():
            self._buffers[name].copy_(tensor, non_blocking=bool(devices))
        for device in devices:
            torch.accelerator.synchronize(device)
        return {name: _rewrap(tensor, self._buffers[name]) for name, tensor in tensors.items()}

    def _fitting_buffer(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        buffer = self._buffers.get(name)
        if buffer is not None and buffer.shape == tensor.shape and buffer.dtype == tensor.dtype:
            return buffer
        pin = tensor.device.type == "cuda"
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=pin)


def on_host(tensors: Mapping[str, torch.Tensor]) -> bool:
    """Whether all tensors are in host memory."""
    return all(tensor.device.type == "cpu" for tensor in tensors.values())


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local().detach() if isinstance(tensor, DTensor) else tensor.detach()


def _rewrap(tensor: torch.Tensor, buffer: torch.Tensor) -> torch.Tensor:
    """The buffer in the shape of the global tensor.

    ``DTensor.from_local`` would move it back to the mesh's device, so the shard of a detached
    DTensor is replaced, as torch.distributed._state_dict_utils does.
    """
    if not isinstance(tensor, DTensor):
        return buffer
    staged: Any = tensor.detach()
    staged._local_tensor = buffer
    return cast(torch.Tensor, staged)
