"""The training that start-up and recovery are measured with: like the quickstart's, but endless."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def small_config(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """Configuration of a two-rank run of a small Llama on Python's standard library."""
    config: dict[str, dict[str, Any] | str] = {
        "name": "bench",
        "runs_dir": str(folder / "runs"),
        "model": {
            "config": {
                "model_type": "llama",
                "hidden_size": 256,
                "intermediate_size": 704,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 4,
                "max_position_embeddings": 512,
            },
            "train_tokenizer_vocab_size": 4096,
            "torch_dtype": "float32",
        },
        "dataset": {
            "_target_": "python_stdlib",
            "max_length": 256,
            "cache_dir": str(folder / "cache"),
        },
        "dataloader": {"batch_size": 2, "num_workers": 0},
        "step_scheduler": {"grad_acc_steps": 1, "max_steps": 10_000, "ckpt_every_steps": 5},
        "checkpoint": {"save_consolidated": False},
        "slurm": {"nodes": 1, "ntasks_per_node": 2, "time": "30m"},
    }
    for name, section in sections.items():
        before = config.get(name, {})
        assert isinstance(before, dict)
        config[name] = {**before, **section}
    return config
