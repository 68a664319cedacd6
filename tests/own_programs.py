"""The examples of training functions, held at a step until somebody disturbs them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from examples import hf_trainer, torch_loop
from submitrain.train.user_function.context import RunContext

HOLDS = {1: 13, 2: 17}
"""By attempt, the finished steps at which every rank waits for what happens to it."""


def held_torch_loop(ctx: RunContext, **settings: Any) -> None:
    """``examples.torch_loop``, held."""
    _hold(ctx, HOLDS)
    torch_loop.train(ctx, **settings)


def held_trainer(ctx: RunContext, **settings: Any) -> None:
    """``examples.hf_trainer``, held."""
    _hold(ctx, HOLDS)
    hf_trainer.train(ctx, **settings)


def _hold(ctx: RunContext, holds: Mapping[int, int]) -> None:
    """Let ``should_stop`` wait at this attempt's step until this rank was asked to stop."""
    ask, at = ctx.should_stop, holds.get(ctx.attempt)

    def should_stop(step: int | None = None) -> bool:
        while at is not None and (step or 0) >= at and not ctx._context.stop.reason:
            ctx.progress()
            time.sleep(0.05)
        return ask(step)

    ctx.should_stop = should_stop  # type: ignore[method-assign]
