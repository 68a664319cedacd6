"""How long a save blocks training: in the background against waiting for it.

A Llama of about 40 M parameters with AdamW state (float32) on two gloo ranks; the saves of both
kinds alternate. Run it by hand: ``python -m benchmarks.checkpoint_blocking [folder]``. The folder
decides which disk is measured; default is the system's temporary folder.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from submitrain.train.checkpoint.manifest import TrainState
from tests.checkpoint_models import adamw, checkpointer, llama, shard
from tests.checkpoint_ranks import Rank, run_ranks

REPEATS = 5


def measure(rank: Rank) -> dict[str, Any]:
    """Blocked seconds of each save, first saves apart: they allocate the buffers."""
    sizes = {"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408}
    model = shard(llama(**sizes, num_hidden_layers=10, num_attention_heads=8), rank.world_size)
    optimizer = adamw(model)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    saver = checkpointer(rank)
    seconds: dict[str, list[float]] = {"background": [], "waiting": [], "in_flight": []}
    for number in range(REPEATS + 1):
        began = time.monotonic()
        blocked = saver.save(model, optimizer, TrainState(step=2 * number + 1), wait=False)
        saver.wait()
        seconds["in_flight"].append(time.monotonic() - began)
        seconds["background"].append(blocked)
        waited = saver.save(model, optimizer, TrainState(step=2 * number + 2), wait=True)
        seconds["waiting"].append(waited)
    saver.close()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    return {"parameters": parameters, **seconds}


def main() -> None:
    """Print the medians over all ranks as JSON."""
    base = Path(sys.argv[1]) if len(sys.argv) > 1 else None
    with tempfile.TemporaryDirectory(dir=base) as folder:
        results = run_ranks(2, measure, Path(folder))
    median = {
        kind: statistics.median(s for result in results for s in result[kind][1:])
        for kind in ("background", "waiting", "in_flight")
    }
    print(
        json.dumps(
            {
                "parameters": results[0]["parameters"],
                "bytes": 12 * results[0]["parameters"],
                "first_background_s": round(max(r["background"][0] for r in results), 4),
                "background_blocked_s": round(median["background"], 4),
                "waiting_blocked_s": round(median["waiting"], 4),
                "background_until_published_s": round(median["in_flight"], 4),
                "ratio": round(median["background"] / median["waiting"], 4),
            },
            indent=2,
        )
    )


if __name__ == "__main__":
    main()
