"""The training that start-up and recovery are measured with: the quickstart's, but endless."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from tests.ranks import REPOSITORY

QUICKSTART = REPOSITORY / "configs" / "quickstart.yaml"
NOT_MEASURED = ("validation_dataset", "sample")


def small_config(folder: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    """The quickstart as it is started, without an end; ``sections`` are merged into it."""
    config: dict[str, Any] = yaml.safe_load(QUICKSTART.read_text())
    for name in NOT_MEASURED:
        config.pop(name, None)
    changes: dict[str, dict[str, Any]] = {
        "dataset": {"cache_dir": str(folder / "cache")},
        "step_scheduler": {"max_steps": 10_000, "ckpt_every_steps": 5, "val_every_steps": None},
        "checkpoint": {"save_consolidated": False},
        "slurm": {"nodes": 1, "ntasks_per_node": 2},
    }
    for change in (changes, sections):
        for name, section in change.items():
            config[name] = {**config.get(name, {}), **section}
    return {**config, "name": "bench", "runs_dir": str(folder / "runs")}


def model_sizes() -> dict[str, Any]:
    """Arguments of the quickstart's LlamaConfig, without the vocabulary."""
    sizes = dict(small_config(Path())["model"]["config"])
    model_type = sizes.pop("model_type")
    assert model_type == "llama", f"{QUICKSTART} has a {model_type}; the rival here is a Llama"
    return sizes
