"""A training small enough for tests and rich enough to go wrong: dropout, packing, accumulation.

``curve`` and ``consumed`` read what a run recorded; ``assert_same_run`` is the promise itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from submitrain.events import Kind, read_events
from submitrain.launcher import Run
from submitrain.launcher.drill.compare import compare_runs, read_curve
from submitrain.launcher.drill.compare import read_consumed as consumed
from submitrain.launcher.plan.prepare import prepare
from submitrain.launcher.submit.start import start
from submitrain.run_folder import RunDir
from submitrain.train.faults import plan_of

__all__ = [
    "assert_same_run", "attempts", "consumed", "curve", "launch_faulty", "losses", "tiny_config",
    "write_samples",
]  # fmt: skip


def write_samples(path: Path, count: int = 120) -> Path:
    """Write a JSONL of short instructions of very different lengths."""
    lines = [
        {
            "instruction": f"Count from {i} to {i + i % 13}.",
            "output": " ".join(str(n) for n in range(i, i + 1 + i % 13)),
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def tiny_config(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Configuration of a two-rank run on ``folder/samples.jsonl``; sections are merged into it."""
    samples = folder / "samples.jsonl"
    if not samples.exists():
        write_samples(samples)
    config: dict[str, Any] = {
        "name": "tiny",
        "runs_dir": str(folder / "runs"),
        "seed": 7,
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "max_position_embeddings": 128,
                "attention_dropout": 0.1,
            },
            "train_tokenizer_vocab_size": 400,
            "torch_dtype": "float32",
        },
        "dataset": {
            "dataset_name": str(samples),
            "max_length": 64,
            "cache_dir": str(folder / "cache"),
        },
        "dataloader": {"batch_size": 2, "num_workers": 1},
        "step_scheduler": {"grad_acc_steps": 2, "max_steps": 24, "ckpt_every_steps": 5},
        "optimizer": {"lr": 3e-3},
        "checkpoint": {"save_consolidated": False},
        "logging": {"log_sample_ids": True, "heartbeat_s": 1.0},
        "slurm": {"nodes": 1, "ntasks_per_node": 2, "time": "30m"},
    }
    for name, section in sections.items():
        config[name] = {**config.get(name, {}), **section} if isinstance(section, dict) else section
    return config


def launch_faulty(config: dict[str, Any], *faults: dict[str, Any], cluster: str = "local") -> Run:
    """Launch with faults planned inside the ranks (``train.faults``): fault-1, fault-2, ..."""
    return Run(start(prepare(config, cluster=cluster), faults=plan_of(*faults)).root)


def curve(folder: Path) -> dict[int, tuple[str, str]]:
    """Loss and gradient norm of every step as hex floats.

    A step that was computed again after a restart must have given the same numbers both times.
    """
    found = read_curve(folder)
    assert not found.contradictory, f"steps {found.contradictory} differ between attempts"
    return {step: (one.loss_hex, one.grad_norm_hex) for step, one in found.steps.items()}


def losses(folder: Path) -> dict[int, float]:
    """Loss of every step as a float; the last computation holds."""
    events = read_events(RunDir(folder).events(0), kinds=frozenset({Kind.STEP}))
    return {event["step"]: float.fromhex(event["loss_hex"]) for event in events}


def attempts(folder: Path) -> list[dict[str, Any]]:
    """The ends of all attempts, in order."""
    return list(read_events(RunDir(folder).attempts, kinds=frozenset({Kind.ATTEMPT_END})))


def assert_same_run(disturbed: Path, undisturbed: Path) -> None:
    """Every step's loss, gradient norm and samples are those of the undisturbed run."""
    comparison = compare_runs(disturbed, undisturbed)
    assert comparison.identical, comparison.text
    assert set(consumed(disturbed)) == set(consumed(undisturbed))
