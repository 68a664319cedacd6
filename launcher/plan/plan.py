"""What a launch will do, worked out before anything is done, and that plan as text.

Pure functions of the configuration; imports neither torch nor submitit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Literal

from submitrain.config import RunConfig
from submitrain.config.types import UNLIMITED_S, format_duration
from submitrain.launcher.container import Runtime, choose_runtime
from submitrain.launcher.plan.config import LoadedConfig
from submitrain.launcher.plan.deadlines import saves_text
from submitrain.launcher.plan.memory import (
    Machine,
    MemoryEstimate,
    checkpoint_bytes,
    model_size,
    rank_memory,
    this_machine,
    trained_parameters,
)
from submitrain.launcher.plan.sbatch import gpus_per_node, sbatch_parameters
from submitrain.launcher.plan.warnings import Situation, config_warnings
from submitrain.launcher.plan.watcher import watched_by, watcher_sbatch, watcher_text
from submitrain.text import bytes_text, count_text, counted


@dataclass(frozen=True)
class Steps:
    """Number of optimizer steps; ``total`` is None where it depends on data not seen yet."""

    total: int | None
    text: str


@dataclass(frozen=True)
class Estimates:
    """What is known of sizes; None where the model's config cannot be read from here."""

    parameters: int | None
    trained_parameters: int | None
    checkpoint_bytes: int | None
    rank_memory: MemoryEstimate | None


@dataclass(frozen=True)
class Plan:
    """One launch, worked out: resources, batch arithmetic, sbatch parameters, estimates."""

    name: str
    digest: str
    cluster: Literal["local", "slurm"]
    nodes: int
    """Nodes that train; of a range, its upper end."""
    min_nodes: int
    spare_nodes: int
    ranks_per_node: int
    gpus_per_node: int
    world_size: int
    batch: str
    smallest_batch: str
    """The same at ``min_nodes``: equal to ``batch`` unless a range of nodes was asked for."""
    global_batch_size: int | None
    """Sequences per step; None where the user's own training function decides that."""
    steps: Steps
    time_limit_s: int
    sbatch: dict[str, Any]
    """Arguments for submitit's ``SlurmExecutor.update_parameters``."""
    estimates: Estimates
    container_runtime: Runtime | None
    """What runs the ranks' container, as far as this machine can tell; None = they run bare."""
    saves: str
    """How often it saves; of an automatic interval, what it is likely to be at first."""
    watcher: str
    """Who watches it, and sends its alerts."""
    watcher_sbatch: dict[str, Any] | None
    """The same as ``sbatch`` for the watcher's job; None where there is none."""
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    entry: str | None = None
    """Import path of the user's own training function; None = the built-in recipe."""

    def as_json(self) -> dict[str, Any]:
        """For ``--json``: plain values, sizes in bytes, times in seconds."""
        value = asdict(self)
        memory = self.estimates.rank_memory
        if memory is not None:
            value["estimates"]["rank_memory"]["total"] = memory.total
        return value

    def render(self) -> str:
        """For a terminal: one line for each fact, then notes, warnings last."""
        rows = [*_rows(self), *(("note", note) for note in self.notes)]
        rows += [("warning", warning) for warning in self.warnings]
        return "\n".join(f"{label:<13}{text}" for label, text in rows)


def make_plan(
    loaded: LoadedConfig,
    *,
    cluster: Literal["local", "slurm"],
    gpus_available: bool,
    samples: int | None = None,
    machine: Machine | None = None,
    runtimes: frozenset[Runtime] = frozenset(),
) -> Plan:
    """Work out a launch.

    Args:
        cluster: where it will run.
        gpus_available: whether that cluster (or this machine) has GPUs to ask for.
        samples: number of training samples, where somebody has counted them.
        machine: cores and memory for local runs; default: this machine's.
        runtimes: container runtimes that are installed on this machine.
    """
    config, slurm = loaded.config, loaded.config.slurm
    arithmetic = None if config.entry else config.batch()
    size = None
    if loaded.model_config is not None:
        vocab_size = config.model.train_tokenizer_vocab_size
        size = model_size(loaded.model_config, vocab_size=vocab_size)
    gpus = _gpu_count(config, cluster, gpus_available)
    estimates = Estimates(None, None, None, None)
    if size is not None:
        estimates = Estimates(
            parameters=size.parameters,
            trained_parameters=trained_parameters(config, size),
            checkpoint_bytes=checkpoint_bytes(config, size),
            rank_memory=rank_memory(config, size, on_gpu=gpus > 0),
        )
    situation = Situation(
        cluster=cluster,
        on_gpu=gpus > 0,
        machine=(machine or this_machine()) if cluster == "local" else None,
        rank_memory=estimates.rank_memory,
        runtimes=runtimes,
    )
    notes = [*loaded.notes]
    if size is None and config.entry is None:
        name = config.model.pretrained_model_name_or_path
        about = f"{name} is not a folder on this machine" if name else "an unknown model family"
        notes.append(f"parameters, memory and checkpoint size are not known here: {about}")
    if slurm.time >= UNLIMITED_S:
        notes.append("no time limit: the run is not stopped and saved ahead of one")
    return Plan(
        name=loaded.name,
        digest=loaded.digest,
        cluster=cluster,
        nodes=slurm.nodes.max,
        min_nodes=slurm.nodes.min,
        spare_nodes=slurm.spare_nodes,
        ranks_per_node=slurm.ntasks_per_node,
        gpus_per_node=gpus,
        world_size=config.world_size,
        batch=arithmetic.text if arithmetic else "",
        smallest_batch=config.batch(config.min_world_size).text if arithmetic else "",
        global_batch_size=arithmetic.global_size if arithmetic else None,
        steps=count_steps(config, samples),
        time_limit_s=slurm.time,
        sbatch=sbatch_parameters(config, name=loaded.name, gpus_available=gpus_available),
        estimates=estimates,
        container_runtime=choose_runtime(slurm, runtimes) if cluster == "slurm" else None,
        saves=saves_text(config, estimates.checkpoint_bytes),
        watcher=watcher_text(config, cluster),
        watcher_sbatch=watcher_sbatch(config) if watched_by(config, cluster) == "job" else None,
        warnings=(*loaded.warnings, *config_warnings(config, situation)),
        notes=tuple(notes),
        entry=config.entry.target if config.entry else None,
    )


def count_steps(config: RunConfig, samples: int | None) -> Steps:
    """Optimizer steps of the run; an epoch's steps only where its number of sequences is known.

    Without packing a sequence is a sample, so an epoch has ``ceil(samples / global batch)`` steps;
    with packing several samples share a sequence and that number is the most it can be.
    """
    if config.entry is not None:
        return Steps(None, "decided by the training function")
    scheduler = config.step_scheduler
    epochs = scheduler.num_epochs or (None if scheduler.max_steps else 1)
    per_epoch = -(-samples // config.batch().global_size) if samples else None
    if scheduler.max_steps and epochs is None:
        return Steps(scheduler.max_steps, f"{scheduler.max_steps} steps")
    assert epochs is not None
    passes = counted(epochs, "epoch")
    if per_epoch is None:
        most = f", at most {scheduler.max_steps} steps" if scheduler.max_steps else ""
        return Steps(None, f"{passes}{most}; steps per epoch are known once the data is tokenized")
    assert samples is not None
    sequences = epochs * samples
    total = -(-sequences // config.batch().global_size)
    if scheduler.max_steps:
        total = min(total, scheduler.max_steps)
    if config.packs:
        return Steps(None, f"{passes}: {total} steps or fewer, as packing fills sequences")
    return Steps(total, f"{passes} of {samples} samples: {total} steps")


def _gpu_count(config: RunConfig, cluster: str, gpus_available: bool) -> int:
    """GPUs per node; by gres they are taken for one a rank."""
    if config.slurm.gpus_per_node == 0 or config.distributed.backend == "gloo":
        return 0
    if cluster == "local":
        return config.slurm.ntasks_per_node if gpus_available else 0
    asked = gpus_per_node(config.slurm, gpus_available=gpus_available)
    if asked is not None:
        return int(str(asked).rpartition(":")[2])
    return config.slurm.ntasks_per_node if "gpu" in (config.slurm.gres or "") else 0


def _rows(plan: Plan) -> Iterator[tuple[str, str]]:
    """Label and text of each fact."""
    where = "this machine" if plan.cluster == "local" else "Slurm"
    yield "run", f"{plan.name} ({plan.digest[:8]}) on {where}"
    nodes, world = counted(plan.nodes, "node"), str(plan.world_size)
    if plan.min_nodes < plan.nodes:
        nodes = f"{plan.min_nodes} to {nodes}"
        world = f"{plan.min_nodes * plan.ranks_per_node} to {world}"
    gpus = f"{plan.gpus_per_node} GPUs per node" if plan.gpus_per_node else "no GPUs"
    yield "ranks", f"{nodes} x {plan.ranks_per_node} ranks = {world}, {gpus}"
    spares = plan.spare_nodes
    if spares and plan.cluster == "slurm":  # they cost as much as nodes that train
        idle = f"{spares * plan.gpus_per_node} GPUs idle" if plan.gpus_per_node else "idle"
        yield (
            "spare",
            f"{counted(spares, 'node')}, {idle} until another one fails: "
            f"{plan.nodes + spares} nodes are charged, {100 * spares / plan.nodes:.0f}% more",
        )
    meaning = "(local x accumulation x world)"
    if plan.entry:
        yield "trains", plan.entry
    elif plan.min_nodes == plan.nodes:
        yield "batch", f"{plan.batch}  {meaning}"
    else:
        yield "batch", f"{plan.batch} on {plan.nodes} nodes  {meaning}"
        yield "", f"{plan.smallest_batch} on {plan.min_nodes}: the same steps, fewer ranks"
    yield "steps", plan.steps.text
    yield "time limit", f"{format_duration(plan.time_limit_s)} for each job"
    sizes, memory = plan.estimates, plan.estimates.rank_memory
    if sizes.parameters and sizes.trained_parameters and sizes.checkpoint_bytes and memory:
        trained = ""
        if sizes.trained_parameters != sizes.parameters:
            trained = f", {count_text(sizes.trained_parameters)} trained"
        yield "model", f"{count_text(sizes.parameters)} parameters{trained}"
        parts = {
            "weights": memory.parameters + memory.gathered,
            "gradients": memory.gradients,
            "optimizer": memory.optimizer,
            "activations": memory.activations,
            "logits": memory.logits,
        }
        listed = ", ".join(f"{name} {bytes_text(size)}" for name, size in parts.items())
        yield "rank memory", f"about {bytes_text(memory.total)}: {listed}"
        yield "checkpoint", f"about {bytes_text(sizes.checkpoint_bytes)}"
    yield "saves", plan.saves
    yield "watcher", plan.watcher
