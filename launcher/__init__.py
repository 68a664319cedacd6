"""Starts runs and keeps them alive: ``from launcher import launch``.

``launcher`` is the short name of ``submitrain.launcher``: one module, never loaded twice.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from submitrain.launcher.api import launch, sweep
    from submitrain.launcher.run import Run
    from submitrain.launcher.sweeps.sweep import Sweep

__all__ = ["Run", "Sweep", "launch", "sweep"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import submitrain

    return getattr(submitrain, name)


if __name__ == "launcher":
    import submitrain.launcher

    sys.modules[__name__] = submitrain.launcher
