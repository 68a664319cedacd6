"""A rank of ``benchmarks.trainer``: every contestant in the same process, round after round."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any, Protocol

import torch

from benchmarks.stopwatch import Stopwatch
from benchmarks.trainer_data import chunks, documents, flatten, packs
from benchmarks.trainer_ours import Ours
from benchmarks.trainer_theirs import Theirs, as_they_are, keeps_documents_apart, llama, padded
from submitrain.config import RunConfig
from submitrain.events import EXIT_FINISHED
from submitrain.train.context import RankContext
from submitrain.train.data.prepare import DataContext, prepare_tokenizer
from submitrain.train.distributed.groups import World, join, set_threads
from submitrain.train.model.attention import fast_16_bit

PLAN_VARIABLE = "SUBMITRAIN_BENCH_PLAN"


class Contestant(Protocol):
    """Something that can be trained for a round."""

    def round(self, watch: Stopwatch) -> None:
        """Train the configured number of steps."""


def main(context: RankContext, config: RunConfig) -> int:
    """Run the rounds and write what this rank measured; rank 0 tells how far it is."""
    plan: dict[str, Any] = json.loads(os.environ[PLAN_VARIABLE])
    set_threads(context.local_world_size)
    world = join(context, config.distributed)
    _introduce_to_accelerate(context)
    place = DataContext(
        context.rank, context.world_size, Path(plan["cache"]), barrier=world.barrier
    )
    contestants, facts = enlist(context, config, world, place, plan)
    names = list(contestants)
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    for number in range(plan["rounds"]):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            watch = Stopwatch(plan["warmup"])
            world.barrier()
            began = time.perf_counter()
            contestants[name].round(watch)
            rounds[name].append(watch.as_json())
            if context.rank == 0:
                print(f"round {number + 1}: {name} {time.perf_counter() - began:.1f} s", flush=True)
    result = {"rounds": rounds, "facts": facts, "torch_threads": torch.get_num_threads()}
    Path(plan["results"], f"rank{context.rank}.json").write_text(json.dumps(result))
    world.barrier()
    return EXIT_FINISHED


def enlist(
    context: RankContext, config: RunConfig, world: World, place: DataContext, plan: dict[str, Any]
) -> tuple[dict[str, Contestant], dict[str, Any]]:
    """All contestants by name, and what is worth knowing about the comparison."""
    apart = config.model_copy(
        update={"packed_sequence": config.packed_sequence.model_copy(update={"enabled": False})}
    )
    packed, unpacked = (Ours(context, one, world, place) for one in (config, apart))
    tokenizer = prepare_tokenizer(config, place)
    store, units = packed.data.train.store, packed.data.train.units
    size = len(tokenizer)
    folder = Path(plan["results"])

    def theirs(rows: Any, collate: Any, **more: Any) -> Theirs:
        return Theirs(config, rows, collate, folder, size, **more)

    rows = packs(store, units)
    contestants: dict[str, Contestant] = {
        "ours packed": packed,
        "ours unpacked": unpacked,
        "Trainer padded": theirs(documents(store), padded(tokenizer)),
        "Trainer flattened": theirs(rows, flatten),
        "Trainer concatenated": theirs(
            chunks(store, config.sequence_length, config.seed), as_they_are()
        ),
    }
    if plan["more"]:
        contestants["Trainer flattened, 1 pack"] = theirs(rows, flatten, batch_size=1)
    if fast_16_bit(world.device):
        half = config.model.model_copy(update={"torch_dtype": "bfloat16"})
        bf16 = config.model_copy(update={"model": half})
        contestants["ours packed bf16"] = Ours(context, bf16, world, place)
        contestants["Trainer padded bf16"] = theirs(documents(store), padded(tokenizer), bf16=True)
        contestants["Trainer concatenated bf16"] = theirs(
            chunks(store, config.sequence_length, config.seed), as_they_are(), bf16=True
        )
    model = llama(config, size)
    facts = {
        "parameters": sum(p.numel() for p in model.parameters()),
        "vocabulary": size,
        "documents": len(store),
        "mean_length": float(store.lengths.mean()),
        "fill_rate": packed.data.train.fill_rate,
        "kept_apart": keeps_documents_apart(model, rows[0]),
        "documents_per_pack": len(store) / len(units),
    }
    return contestants, facts


def _introduce_to_accelerate(context: RankContext) -> None:
    """accelerate learns from torchrun's variables which rank it is; the group exists already."""
    os.environ |= {
        "RANK": str(context.rank),
        "LOCAL_RANK": str(context.local_rank),
        "WORLD_SIZE": str(context.world_size),
        "LOCAL_WORLD_SIZE": str(context.local_world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",
    }
