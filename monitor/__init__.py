"""Watches runs from outside: reads run folders and the scheduler, never writes into training.

``monitor`` is the short name of ``submitrain.monitor``: one module, never loaded twice.
"""

from __future__ import annotations

import sys

if __name__ == "monitor":
    import submitrain.monitor

    sys.modules[__name__] = submitrain.monitor
