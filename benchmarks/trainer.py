"""Useful tokens per second: our loop against Hugging Face's Trainer on two gloo ranks.

``python -m benchmarks.trainer [--steps 20] [--rounds 3] [--more]``

Same model (a small Llama, float32), same documents (Python's standard library), same micro-batch
of sequences and accumulation, same threads; both live in the same two processes and take turns. A
token counts when it is text: padding does not. Warm-up steps do not count either.

- Trainer padded: its default, one document per row, padded to the longest of the micro-batch;
- Trainer flattened: the same packs as ours, ``DataCollatorWithFlattening``, documents kept apart;
- Trainer concatenated: as in run_clm.py, full rows, documents *not* kept apart.

bfloat16 takes part where the processor has it; elsewhere torch emulates it, tens of times slower.
CPU seconds are those of both ranks together: the steadier measure on a busy machine.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.report import Aim, at_least, head, median_ratio, say, table
from benchmarks.trainer_rank import PLAN_VARIABLE
from tests import ranks

WORLD_SIZE = 2
TIMEOUT_S = 3600.0
COMPARISONS: tuple[tuple[str, str, Aim], ...] = (
    ("ours packed", "Trainer padded", at_least(2.5)),
    ("ours packed bf16", "Trainer padded bf16", at_least(2.5)),
    ("ours packed", "Trainer flattened", at_least(1.2)),
    ("ours packed bf16", "Trainer concatenated bf16", at_least(1.1)),
    ("ours packed", "Trainer concatenated", at_least(1.1)),
    ("ours unpacked", "Trainer padded", at_least(1.0)),
)


def main() -> None:
    """Measure and print."""
    asked = _arguments()
    head(f"tokens/s against Trainer, {asked.rounds} rounds of {asked.steps} steps")
    with tempfile.TemporaryDirectory() as folder:
        results = measure(Path(folder), asked)
    _tell_facts(results[0])
    everyones_rounds = [result["rounds"] for result in results]
    rates = {
        name: [
            _rates(parts) for parts in zip(*(one[name] for one in everyones_rounds), strict=True)
        ]
        for name in everyones_rounds[0]
    }
    _tell_rates(rates)
    for ours, other, aim in COMPARISONS:
        if ours in rates and other in rates:
            _compare(rates, ours, other, aim)
        else:
            print(f"{ours} / {other}: not measured, this processor has no bfloat16 arithmetic")


def measure(folder: Path, asked: argparse.Namespace) -> list[dict[str, Any]]:
    """What every rank wrote down."""
    plan = {
        "rounds": asked.rounds,
        "warmup": asked.warmup,
        "more": asked.more,
        "cache": str(folder / "cache"),
        "results": str(folder),
    }
    environment = {
        "SUBMITRAIN_RANK_MODULE": "benchmarks.trainer_rank",
        PLAN_VARIABLE: json.dumps(plan),
        "TOKENIZERS_PARALLELISM": "false",
    }
    started = ranks.start(folder / "run", config(folder, asked), WORLD_SIZE, **environment)
    codes = started.wait(TIMEOUT_S)
    if any(codes):
        raise RuntimeError(f"exit codes {codes}\n{started.output()}")
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(WORLD_SIZE)]


def config(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """The training that all contestants do."""
    return {
        "name": "bench",
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": asked.hidden,
                "intermediate_size": asked.hidden * 11 // 4,
                "num_hidden_layers": 4,
                "num_attention_heads": asked.hidden // 64,
                "num_key_value_heads": asked.hidden // 64,
                "max_position_embeddings": asked.length,
            },
            "train_tokenizer_vocab_size": 4096,
            "torch_dtype": "float32",
        },
        "dataset": {
            "_target_": "python_stdlib",
            "max_length": asked.length,
            "num_samples_limit": asked.samples,
            "cache_dir": str(folder / "cache"),
        },
        "dataloader": {"batch_size": asked.batch},
        "step_scheduler": {
            "grad_acc_steps": asked.accumulation,
            "max_steps": asked.warmup + asked.steps,
        },
        "optimizer": {"lr": 5e-4},
        "checkpoint": {"enabled": False},
        "slurm": {"nodes": 1, "ntasks_per_node": WORLD_SIZE},
    }


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer")
    parser.add_argument("--steps", type=int, default=20, help="measured steps per round")
    parser.add_argument("--warmup", type=int, default=3, help="steps before those")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hidden", type=int, default=256)
    parser.add_argument("--length", type=int, default=512, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=4, help="sequences per micro-batch")
    parser.add_argument("--accumulation", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--more", action="store_true", help="also Trainer with one pack per row")
    return parser.parse_args()


def _rates(parts: Sequence[dict[str, float]]) -> dict[str, float]:
    """Rates of one round of all ranks together; its wall time is the slowest rank's."""
    total = {key: sum(part[key] for part in parts) for key in parts[0]}
    return {
        "wall": total["tokens"] / max(part["wall_s"] for part in parts),
        "cpu": total["tokens"] / total["cpu_s"],
        "filled": total["tokens"] / total["slots"],
    }


def _tell_facts(result: dict[str, Any]) -> None:
    facts = result["facts"]
    print(
        f"model: {facts['parameters'] / 1e6:.1f} M parameters, vocabulary {facts['vocabulary']}, "
        f"{result['torch_threads']} thread(s) per rank\n"
        f"data: {facts['documents']} documents of {facts['mean_length']:.0f} tokens in the mean, "
        f"{facts['documents_per_pack']:.1f} per pack, packs filled {facts['fill_rate']:.3f}; "
        f"Trainer's flattened rows keep documents apart: {facts['kept_apart']}"
    )


def _tell_rates(rates: dict[str, list[dict[str, float]]]) -> None:
    columns = {"tokens/s": "wall", "tokens/CPU s": "cpu", "slots filled": "filled"}
    table(
        "median of the rounds",
        list(columns),
        {
            name: [statistics.median(one[key] for one in rounds) for key in columns.values()]
            for name, rounds in rates.items()
        },
    )


def _compare(rates: dict[str, list[dict[str, float]]], ours: str, other: str, aim: Aim) -> None:
    for measure, unit in (("wall", "per second"), ("cpu", "per CPU second")):
        ratio, rounds = median_ratio(
            [one[measure] for one in rates[ours]], [one[measure] for one in rates[other]]
        )
        say(f"{ours} / {other}, {unit}", ratio, aim, unit=" x", note=rounds)


if __name__ == "__main__":
    main()
