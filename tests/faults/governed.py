"""An optimizer whose pace is set from outside while it runs."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


class GovernedAdamW(torch.optim.AdamW):
    """AdamW whose steps last as many seconds as a file says: who disturbs a run sets its pace."""

    def __init__(self, params: Any, *, pace_file: str = "", **settings: Any) -> None:
        super().__init__(params, **settings)
        self._pace_file = Path(pace_file) if pace_file else None

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Sleep as long as the file says, then step."""
        began = time.monotonic()
        while self._pace_file and time.monotonic() < began + float(self._pace_file.read_text()):
            time.sleep(0.02)
        return super().step(closure)
