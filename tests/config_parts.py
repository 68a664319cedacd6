"""A smallest valid configuration, and a writer of YAML files, for the configuration's tests."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from submitrain.launcher.plan.config import LoadedConfig, load_config
from submitrain.launcher.plan.memory import Machine
from submitrain.launcher.plan.plan import Plan, make_plan

SMALL: dict[str, Any] = {
    "model": {"config": {"model_type": "llama"}, "train_tokenizer_vocab_size": 500},
    "dataset": {"_target_": "python_stdlib"},
}
BASE = (
    "model: {config: {model_type: llama}, train_tokenizer_vocab_size: 500}\n"
    "dataset: {_target_: python_stdlib}\n"
)
"""Two lines: what a test adds begins in line 3."""

MACHINE = Machine(cpus=64, memory_bytes=512 * 10**9)


def write(folder: Path, text: str) -> Path:
    """Write ``text`` as a.yaml."""
    path = folder / "a.yaml"
    path.write_text(text)
    return path


def load(
    sections: Mapping[str, Any] | None = None, *, environ: Mapping[str, str] | None = None
) -> LoadedConfig:
    """Load SMALL with ``sections`` merged in."""
    return load_config(SMALL, changes=sections or {}, environ=environ or {})


def plan(
    sections: Mapping[str, Any] | None = None, *, cluster: Any = "slurm", gpus: bool = True
) -> Plan:
    """Plan SMALL with ``sections`` merged in, on a machine that is the same everywhere."""
    return make_plan(load(sections), cluster=cluster, gpus_available=gpus, machine=MACHINE)
