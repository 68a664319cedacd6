"""``python -m launcher init``: a first configuration, from what the cluster says it has. Pure.

It trains the quickstart's small model on text that every machine has, so that the first run needs
no download; what to change for one's own model is said where it stands.

``init``, ``explain`` and ``completion``: the commands by which one learns the others.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from submitrain.config.job import ResilienceConfig
from submitrain.config.types import format_duration
from submitrain.errors import ClusterError, UserError
from submitrain.launcher.plan.memory import Machine
from submitrain.slurm.cluster import ClusterInventory, Partition

USUAL_S = 3600
"""Short jobs start sooner, and a run outlives the limit of its job."""
MOST_LOCAL_RANKS = 2
MOST_CORES = 16
"""Cores per rank that a training can use for loading and tokenizing."""

_HEAD = """\
# yaml-language-server: $schema={schema}
# Written by `python -m launcher init` {where}.
#
#   python -m launcher plan {name}
#       what a launch would ask for; starts nothing
#   python -m launcher {name}
#       train
#   python -m launcher explain slurm.time
#       what a key means; docs/configuration.md has them all

"""
_MODEL = """\
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


def _model(*, gpus: int, ranks: int) -> str:
    return _MODEL.format(dtype="bfloat16" if gpus else "float32", batch=f"{2 * ranks:<21}")


def local_config(machine: Machine, gpus: int, *, name: str, schema: str) -> str:
    """Text of a configuration for this machine."""
    ranks = gpus or max(1, min(MOST_LOCAL_RANKS, machine.cpus))
    what = f"{gpus} GPUs" if gpus else f"no GPU, {machine.cpus} cores"
    head = _HEAD.format(schema=schema, name=name, where=f"for this machine ({what})")
    model = _model(gpus=gpus, ranks=ranks)
    return f"""{head}cluster: local

{model}slurm:                                     # shapes local runs, too
  nodes: 1
  ntasks_per_node: {ranks:<23} # ranks: one for every {"GPU" if gpus else "core"}
"""


def slurm_config(offer: ClusterInventory, partition: Partition, *, name: str, schema: str) -> str:
    """Text of a configuration for a partition of this cluster."""
    ranks = partition.gpus or 1
    where = f"for partition {partition.name} of this cluster"
    head = _HEAD.format(schema=schema, name=name, where=where)
    model = _model(gpus=partition.gpus, ranks=ranks)
    return f"{head}cluster: slurm\n\n{model}{_slurm(offer, partition, ranks)}"


def _slurm(offer: ClusterInventory, partition: Partition, ranks: int) -> str:
    time_s = min(USUAL_S, partition.max_s or USUAL_S)
    cores = max(1, min(MOST_CORES, partition.cpus // ranks))
    account, others = (offer.accounts[0] if offer.accounts else "none"), offer.accounts[1:]
    accounts = f"yours, too: {', '.join(others)}" if others else ""
    lines = [
        ("partition", partition.name, ""),
        ("account", account, accounts or ("" if offer.accounts else "Slurm names none of yours")),
        ("nodes", "1", f"this partition has {partition.nodes}; 2-4 takes what is free"),
        ("ntasks_per_node", str(ranks), "ranks per node: one for every GPU"),
        ("gpus_per_node", str(partition.gpus), partition.gpu_type) if partition.gpus else None,
        ("cpus_per_task", str(cores), ""),
        ("time", format_duration(time_s), _limit_note(partition)),
    ]
    written = [
        f"  {key}: {value}".ljust(43) + (f"# {note}" if note else "")
        for key, value, note in filter(None, lines)
    ]
    listed = [f"  #   {_line(one)}" for one in offer.partitions]
    return "\n".join(
        [
            *_kill_wait(offer),
            "slurm:",
            "  # Partitions here:",
            *listed,
            *map(str.rstrip, written),
            "",
        ]
    )


def _kill_wait(offer: ClusterInventory) -> list[str]:
    """The cluster's grace, where it is shorter than what we count on by default."""
    usual = int(ResilienceConfig().kill_wait_s)
    if offer.kill_wait_s is None or offer.kill_wait_s >= usual:
        return []
    line = f"  kill_wait_s: {offer.kill_wait_s}".ljust(43)
    return ["resilience:", f"{line}# seconds to save after TERM: this cluster's KillWait", ""]


def _limit_note(partition: Partition) -> str:
    limit = format_duration(partition.max_s) if partition.max_s else "no limit"
    return f"of one job (partition: {limit}); the run goes on after it"


def _line(one: Partition) -> str:
    gpus = f"{one.gpus} x {one.gpu_type or 'GPU'}, " if one.gpus else ""
    limit = format_duration(one.max_s) if one.max_s else "unlimited"
    marks = (" (default)" if one.default else "") + ("" if one.up else " (down)")
    return (
        f"{one.name}{marks}: {one.nodes} nodes with {gpus}{one.cpus} cores, "
        f"{one.memory_mb / 1024:.0f} GiB; jobs up to {limit}"
    )


# ruff: noqa: T201 - printing is what a command line does


SCHEMA = Path(__file__).parents[1] / "config.schema.json"
"""JSON Schema of configuration files, generated; editors read it by the files' first line."""


def init(options: argparse.Namespace) -> int:
    """Write a first configuration for the cluster, or the machine, that is here."""
    target = None if options.output == "-" else Path(options.output).expanduser()
    if target is not None:
        _refuse_to_overwrite(target, force=options.force)
    text = _text(options.cluster, str(options.output))
    if target is None:
        sys.stdout.write(text)
        return 0
    try:
        target.write_text(text)
    except OSError as error:
        raise UserError(f"--output: {target} cannot be written: {error.strerror}") from error
    print(f"wrote {target} {_purpose(text)}; next:")
    print(f"  python -m launcher plan {target}")
    print(f"  python -m launcher {target}")
    return 0


def _purpose(text: str) -> str:
    """What the file is for, as its head says."""
    found = re.search(r"launcher init` (for .+)\.$", text, re.MULTILINE)
    return found[1] if found else ""


def _refuse_to_overwrite(target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise UserError(f"--output: expected a file to write, got the folder {target}")
    if target.exists() and not force:
        raise UserError(
            f"--output: {target} exists already; name another file, or overwrite it with --force"
        )


def _text(wanted: str, name: str) -> str:
    from submitrain.launcher.plan.memory import this_machine
    from submitrain.launcher.submit.submit import choose_cluster
    from submitrain.slurm.client import query_inventory

    name = "CFG.yaml" if name == "-" else name
    if choose_cluster(wanted).name == "local":
        gpus = len(list(Path("/dev").glob("nvidia[0-9]*")))
        return local_config(this_machine(), gpus, name=name, schema=str(SCHEMA))
    offer = query_inventory()
    best = offer.best()
    if best is None:
        raise ClusterError(
            f"init: Slurm names no partition ({offer.problem or 'sinfo lists none'}); write for "
            "this machine with --cluster local"
        )
    return slurm_config(offer, best, name=name, schema=str(SCHEMA))
