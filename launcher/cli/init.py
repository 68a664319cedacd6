"""The command ``init``: a first configuration, from what the cluster says it has.

It trains the quickstart's small model on text that every machine has, so that the first run needs
no download; what to change for one's own model is said where it stands.
"""

# ruff: noqa: T201 - printing is what a command line does

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from submitrain.config.job import ResilienceConfig
from submitrain.config.types import format_duration
from submitrain.errors import ClusterError, UserError
from submitrain.launcher.plan.memory import this_machine
from submitrain.launcher.submit.submit import choose_cluster
from submitrain.slurm.client import query_inventory
from submitrain.slurm.cluster import ClusterInventory, Partition

SCHEMA = Path(__file__).parents[1] / "config.schema.json"
"""JSON Schema of configuration files, generated; editors read it by the files' first line."""
USUAL_S = 3600
"""Short jobs start sooner, and a run outlives the limit of its job."""
MOST_LOCAL_RANKS = 2
MOST_CORES = 16
"""Cores per rank that a training can use for loading and tokenizing."""

_HEAD = """\
# yaml-language-server: $schema={schema}
# Written by `python -m launcher init` {purpose}.
#
#   python -m launcher plan {name}
#       what a launch would ask for; starts nothing
#   python -m launcher {name}
#       train
#   python -m launcher explain slurm.time
#       what a key means; docs/configuration.md has them all

cluster: {cluster}

model:
  # A small Llama with random weights: the first run needs no download. To fine-tune a model, write
  # its hub name or folder instead of `config` and `train_tokenizer_vocab_size`:
  #   pretrained_model_name_or_path: Qwen/Qwen3-0.6B
  config:
    model_type: llama
    hidden_size: 192
    intermediate_size: 512
    num_hidden_layers: 4
    num_attention_heads: 6
    num_key_value_heads: 2
    max_position_embeddings: 512
  train_tokenizer_vocab_size: 2048
  torch_dtype: {dtype}

dataset:
  # Functions of Python's standard library, from their docstrings. Your own instructions:
  #   dataset_name: data/train.jsonl       # JSONL, Parquet, a folder of them, or a hub name
  # without `_target_` and `answer_only_loss_mask` (loss on the answers only is the default).
  _target_: python_stdlib
  max_length: 256                          # tokens; longer samples are cut, and counted
  answer_only_loss_mask: false

step_scheduler:
  global_batch_size: {batch} # sequences per step, over all ranks
  max_steps: 100                           # optimizer steps
  warmup_steps: 10
  ckpt_every_steps: auto                   # from the measured cost of a save

dataloader:
  batch_size: 2                            # sequences per rank and micro-batch

optimizer:
  _target_: torch.optim.AdamW
  lr: 1.0e-3

clip_grad_norm:
  max_norm: 1.0

checkpoint:
  keep_last_n_checkpoints: 2
  save_consolidated: final                 # export/ is for from_pretrained

"""


def init(options: argparse.Namespace) -> int:
    """Write a first configuration for the cluster, or the machine, that is here."""
    target = None if options.output == "-" else Path(options.output).expanduser()
    if target is not None and target.is_dir():
        raise UserError(f"--output: expected a file to write, got the folder {target}")
    if target is not None and target.exists() and not options.force:
        raise UserError(
            f"--output: {target} exists already; name another file, or overwrite it with --force"
        )
    name = str(options.output) if target else "CFG.yaml"
    if choose_cluster(options.cluster).name == "local":
        text, purpose = _for_this_machine(name)
    else:
        text, purpose = _for_slurm(query_inventory(), name)
    if target is None:
        sys.stdout.write(text)
        return 0
    try:
        target.write_text(text)
    except OSError as error:
        raise UserError(f"--output: {target} cannot be written: {error.strerror}") from error
    print(f"wrote {target} {purpose}; next:")
    print(f"  python -m launcher plan {target}")
    print(f"  python -m launcher {target}")
    return 0


def _for_this_machine(name: str) -> tuple[str, str]:
    """The text, and what it is for."""
    gpus, cpus = len(list(Path("/dev").glob("nvidia[0-9]*"))), this_machine().cpus
    ranks = gpus or max(1, min(MOST_LOCAL_RANKS, cpus))
    purpose = f"for this machine ({f'{gpus} GPUs' if gpus else f'no GPU, {cpus} cores'})"
    head = _head(name, purpose, "local", gpus=gpus, ranks=ranks)
    return (
        f"""{head}slurm:                                     # shapes local runs, too
  nodes: 1
  ntasks_per_node: {ranks:<23} # ranks: one for every {"GPU" if gpus else "core"}
""",
        purpose,
    )


def _head(name: str, purpose: str, cluster: str, *, gpus: int, ranks: int) -> str:
    dtype, batch = "bfloat16" if gpus else "float32", f"{2 * ranks:<21}"
    return _HEAD.format(
        schema=SCHEMA, name=name, purpose=purpose, cluster=cluster, dtype=dtype, batch=batch
    )


def _for_slurm(inventory: ClusterInventory, name: str) -> tuple[str, str]:
    """The text for the best partition of this cluster, and what it is for."""
    best = inventory.best()
    if best is None:
        raise ClusterError(
            f"init: Slurm names no partition ({inventory.problem or 'sinfo lists none'}); write "
            "for this machine with --cluster local"
        )
    ranks, accounts = best.gpus or 1, inventory.accounts
    cores = max(1, min(MOST_CORES, best.cpus // ranks))
    others = f"yours, too: {', '.join(accounts[1:])}" if accounts[1:] else ""
    time_s = min(USUAL_S, best.max_s or USUAL_S)
    limit = format_duration(best.max_s) if best.max_s else "no limit"
    rows = [
        ("partition", best.name, ""),
        (
            "account",
            accounts[0] if accounts else "none",
            others if accounts else "Slurm names none of yours",
        ),
        ("nodes", "1", f"this partition has {best.nodes}; 2-4 takes what is free"),
        ("ntasks_per_node", str(ranks), "ranks per node: one for every GPU"),
        *([("gpus_per_node", str(best.gpus), best.gpu_type)] if best.gpus else []),
        ("cpus_per_task", str(cores), ""),
        (
            "time",
            format_duration(time_s),
            f"of one job (partition: {limit}); the run goes on after it",
        ),
    ]
    lines = ["slurm:", "  # Partitions here:", *map(_partition_line, inventory.partitions)]
    lines += [_row(*row) for row in rows]
    grace = inventory.kill_wait_s
    if grace is not None and grace < ResilienceConfig().kill_wait_s:
        note = "seconds to save after TERM: this cluster's KillWait"
        lines = ["resilience:", _row("kill_wait_s", str(grace), note), "", *lines]
    purpose = f"for partition {best.name} of this cluster"
    head = _head(name, purpose, "slurm", gpus=best.gpus, ranks=ranks)
    return f"{head}{chr(10).join(lines)}\n", purpose


def _row(key: str, value: str, note: str) -> str:
    return (f"  {key}: {value}".ljust(43) + (f"# {note}" if note else "")).rstrip()


def _partition_line(one: Partition) -> str:
    gpus = f"{one.gpus} x {one.gpu_type or 'GPU'}, " if one.gpus else ""
    limit = format_duration(one.max_s) if one.max_s else "unlimited"
    marks = (" (default)" if one.default else "") + ("" if one.up else " (down)")
    return (
        f"  #   {one.name}{marks}: {one.nodes} nodes with {gpus}{one.cpus} cores, "
        f"{one.memory_mb / 1024:.0f} GiB; jobs up to {limit}"
    )
