"""Ranks without torch for tests of the launcher: they count steps and stop when they are asked to.

``SUBMITRAIN_RANK_MODULE=toy_rank`` puts it in the recipe's place; the tests copy this file into the
user's project, so that it reaches the ranks by the code snapshot like any user's code.
"""

from __future__ import annotations

import os
import time

from submitrain.config import RunConfig
from submitrain.errors import DataError
from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, Phase, curve
from submitrain.train.context import RankContext


def main(context: RankContext, config: RunConfig) -> int:
    """Count from where the run folder says to ``max_steps``, one step in TOY_STEP_S seconds."""
    if os.environ.get("TOY_DATA_ERROR"):
        raise DataError("dataset: expected at least one sample, got none (nowhere.jsonl)")
    total = config.step_scheduler.max_steps or 1
    done = max(curve(context.run_dir.events(0)), default=0)
    print(f"from {__file__} gpus {os.environ.get('CUDA_VISIBLE_DEVICES', 'all')}", flush=True)
    context.enter(Phase.STEP)
    for step in range(done + 1, total + 1):
        time.sleep(float(os.environ.get("TOY_STEP_S", "0.02")))
        context.step = step
        if context.rank == 0:
            context.events.write(
                Kind.STEP, step=step, loss=4.0 / step, lr=1e-3, tokens=8, tokens_per_s=400.0
            )
        if context.stop.reason:
            context.events.write(Kind.STOPPED, step=step, reason=context.stop.reason.name.lower())
            return EXIT_STOPPED
    context.events.write(Kind.FINISH, step=total)
    return EXIT_FINISHED
