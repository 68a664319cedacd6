"""Components that a user might write, named by import path in the tests' configurations."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


class PacedAdamW(torch.optim.AdamW):
    """AdamW that takes its time: gives a tiny model steps of a length that a test can rely on."""

    def __init__(self, params: Any, *, pause_s: float = 0.0, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._pause_s = pause_s

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Sleep, then step."""
        time.sleep(self._pause_s)
        return super().step(closure)
