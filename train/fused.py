"""Faster forms of a model's own parts: torch's fused RMS norm, Liger's kernels if installed."""

from __future__ import annotations

import types
from importlib.util import find_spec

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from train.errors import ConfigError


def use_liger(model_type: str, device: torch.device) -> None:
    """Replace parts of ``model_type`` in transformers by Liger's; call before the model is made.

    The loss is not replaced: it is computed here, over label tokens only.

    Raises:
        ConfigError: Liger is not installed, needs a GPU, or does not know the model.
    """
    key = "model.use_liger_kernel"
    if not find_spec("liger_kernel"):
        raise ConfigError(
            f"{key}: the package liger-kernel is not installed; "
            "pip install 'submitrain[liger]', or set it to false"
        )
    if device.type != "cuda":
        raise ConfigError(f"{key}: Liger's kernels need a GPU; set it to false on CPUs")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN

    apply = MODEL_TYPE_TO_APPLY_LIGER_FN.get(model_type)
    if apply is None:
        raise ConfigError(
            f"{key}: Liger does not know {model_type}; allowed: "
            f"{', '.join(sorted(MODEL_TYPE_TO_APPLY_LIGER_FN))}; or set it to false"
        )
    apply(cross_entropy=False, fused_linear_cross_entropy=False)


def fuse_norms(model: nn.Module) -> int:
    """Let modules that compute a plain RMS norm use ``F.rms_norm``; returns how many do.

    Decided by comparing outputs for each class, not by name: Gemma's adds 1 to the weight.
    """
    fused = 0
    plain: dict[type, bool] = {}
    for module in model.modules():
        eps = getattr(module, "variance_epsilon", getattr(module, "eps", None))
        if type(module).__name__.endswith("RMSNorm") and isinstance(eps, float):
            kind = type(module)
            if kind not in plain:
                plain[kind] = _is_plain(kind)
            if not plain[kind]:
                continue
            module.forward = types.MethodType(_fused_forward, module)
            module._norm_eps = eps  # type: ignore[assignment]
            fused += 1
    return fused


def _fused_forward(self: nn.Module, hidden: Tensor) -> Tensor:
    weight = self.weight
    assert isinstance(weight, Tensor)
    return F.rms_norm(hidden, weight.shape, weight, self._norm_eps)  # type: ignore[arg-type]


def _is_plain(norm: type[nn.Module]) -> bool:
    """Whether ``norm`` gives what ``F.rms_norm`` gives, tried on random numbers."""
    if norm.__module__.startswith("liger_kernel"):
        return False
    try:
        probe = norm(16, eps=1e-5).float()
        weight = probe.weight
        assert isinstance(weight, Tensor)
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            weight.copy_(torch.randn(16, generator=generator))
            hidden = torch.randn(4, 16, generator=generator)
            expected = F.rms_norm(hidden, (16,), weight, 1e-5)
            return bool(torch.allclose(probe(hidden), expected, rtol=1e-5, atol=1e-6))
    except (TypeError, AttributeError, AssertionError, RuntimeError):
        return False
