"""Training of Hugging Face causal LMs: the ranks' side. Knows no scheduler.

    from train import RunContext  # what a training function of your own is given; imports no torch

The light modules (``config``, ``errors``, ``events``, ``rundir``) import neither torch nor
transformers; ``launcher`` and ``monitor`` may import only those.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from train.own.checkpoint import Checkpoint
    from train.own.context import RunContext
    from train.own.order import DataOrder

__all__ = ["Checkpoint", "DataOrder", "RunContext"]

_HOMES = {
    "Checkpoint": "train.own.checkpoint",
    "DataOrder": "train.own.order",
    "RunContext": "train.own.context",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'train' has no attribute {name!r}")
