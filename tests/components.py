"""Components that a user might write, named by import path in the tests' configurations."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from submitrain.run_folder import ATTEMPT_VARIABLE


class PacedAdamW(torch.optim.AdamW):
    """AdamW that takes its time: gives a tiny model steps of a length that a test can rely on."""

    def __init__(self, params: Any, *, pause_s: float = 0.0, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._pause_s = pause_s

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Sleep, then step."""
        time.sleep(self._pause_s)
        return super().step(closure)


class BreakingAdamW(torch.optim.AdamW):
    """AdamW whose update number ``break_at`` puts an infinity into the first parameter."""

    def __init__(self, params: Any, *, break_at: int, **settings: Any) -> None:
        super().__init__(params, **settings)
        self._break_at = break_at

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step, and break the weights if it is time."""
        loss = super().step(closure)
        first = self.param_groups[0]["params"][0]
        if int(self.state[first]["step"]) == self._break_at:
            first.data.mul_(float("inf"))
        return loss


def poisoned_llama(
    config: dict[str, Any], poison: list[int], factor: str, **_: Any
) -> PreTrainedModel:
    """A Llama whose logits are multiplied by ``factor`` for micro-batches with a poison token."""
    values = dict(config)
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(values.pop("model_type"), **values), dtype=torch.float32
    )
    poisoned = False

    def look(_module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        nonlocal poisoned
        poisoned = bool(torch.isin(inputs[0], torch.tensor(poison)).any())

    def spoil(_module: torch.nn.Module, _inputs: object, logits: torch.Tensor) -> torch.Tensor:
        return logits * float(factor) if poisoned else logits

    model.get_input_embeddings().register_forward_pre_hook(look)
    model.get_output_embeddings().register_forward_hook(spoil)
    return model


class NoisyAdamW(torch.optim.AdamW):
    """AdamW with a little noise from the system: no two runs are the same."""

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step, then move every weight by a tiny amount that nobody can repeat."""
        loss = super().step(closure)
        nudge = int.from_bytes(os.urandom(2)) * 1e-9
        with torch.no_grad():
            for group in self.param_groups:
                for parameter in group["params"]:
                    parameter.add_(nudge)
        return loss


class HangingData:
    """Rows of text, of which one never comes in the first attempt that asks for it."""

    def __init__(self, *, rows: int, row: int, struck: str) -> None:
        self._rows, self._row, self._struck = rows, row, Path(struck)

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, number: int) -> dict[str, str]:
        if number == self._row and not self._struck.exists():
            self._struck.touch()
            signal.pause()
        return {"prompt": f"Count from {number}.", "response": f"{number} {number + 1}"}


class HangingAdamW(torch.optim.AdamW):
    """AdamW that never comes back from one update of one rank, in the run's first attempt."""

    def __init__(self, params: Any, *, rank: int, update: int, **settings: Any) -> None:
        super().__init__(params, **settings)
        mine = os.environ["SUBMITRAIN_RANK"] == str(rank)
        self._hang_at = update if mine and os.environ[ATTEMPT_VARIABLE] == "1" else 0
        self._updates = 0

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """Step, or hang."""
        self._updates += 1
        if self._updates == self._hang_at:
            time.sleep(3600)
        return super().step(closure)
