"""Multi-node training on Slurm that finishes: ``from submitrain import launch``.

The package itself holds what all parts share (configuration, run folder, events, attempts, status,
Slurm client) and imports nothing above it. ``launcher``, ``train`` and ``monitor`` are folders at
the top of the repository and packages in here; importing this imports none of them.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submitrain.launcher.api import launch, sweep
    from submitrain.launcher.run import Run
    from submitrain.launcher.sweeps.sweep import Sweep
    from submitrain.train.checkpoint.manifest import Checkpoint
    from submitrain.train.user_function.context import DataOrder, RunContext

__all__ = ["Checkpoint", "DataOrder", "Run", "RunContext", "Sweep", "launch", "sweep"]

_HOMES = {
    "launch": "submitrain.launcher.api",
    "sweep": "submitrain.launcher.api",
    "Run": "submitrain.launcher.run",
    "Sweep": "submitrain.launcher.sweeps.sweep",
    "Checkpoint": "submitrain.train.checkpoint.manifest",
    "DataOrder": "submitrain.train.user_function.context",
    "RunContext": "submitrain.train.user_function.context",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
