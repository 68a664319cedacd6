"""RunConfig: all sections together, and what follows from more than one of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from pydantic import model_validator

from submitrain.config.alerts import AlertsConfig, MonitorConfig
from submitrain.config.checks import problems_of
from submitrain.config.job import LoggingConfig, ResilienceConfig, SlurmConfig
from submitrain.config.sections import (
    CheckpointConfig,
    ClipGradNormConfig,
    CompileConfig,
    DataLoaderConfig,
    DatasetConfig,
    DistributedConfig,
    EntryConfig,
    LRSchedulerConfig,
    ModelConfig,
    OptimizerConfig,
    PackedSequenceConfig,
    PeftConfig,
    SampleConfig,
    StepSchedulerConfig,
    TensorboardConfig,
    TrackioConfig,
    TrainingOptimizationsConfig,
    WandbConfig,
)
from submitrain.config.types import OptionalStr, PreflightMode, Section, key


@dataclass(frozen=True)
class BatchArithmetic:
    """How a step's sequences come about: ``local x accumulation x world = global``.

    ``global_size`` is fixed for the whole run; at another world size the accumulation follows.
    """

    local_size: int
    accumulation: int
    world_size: int
    global_size: int

    @property
    def text(self) -> str:
        """``2 x 16 x 32 = 1024``, with the uneven rest where there is one."""
        slots = self.local_size * self.accumulation * self.world_size
        product = f"{self.local_size} x {self.accumulation} x {self.world_size} = {slots}"
        if slots == self.global_size:
            return product
        return (
            f"{product} slots for {self.global_size} sequences ({slots - self.global_size} empty)"
        )


class RunConfig(Section):
    """One run of training, complete."""

    recipe: OptionalStr = key(
        None, "Recipe of the NeMo AutoModel family: all are the built-in one."
    )
    name: OptionalStr = key(
        None,
        "Name of the run; default: slurm.job_name or the file's name.",
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$",
    )
    runs_dir: str = key("runs", "Folder in which run folders are made.")
    cluster: Literal["auto", "local", "slurm"] = key(
        "auto", "Where to run; auto = Slurm if sbatch answers here, else this machine."
    )
    preflight: PreflightMode = key(
        "quick",
        "Checks of a job's nodes before training starts on them: off, quick (a light task on "
        "each: folders, limits, versions, GPUs, links) or full (all ranks meet, reduce and "
        "multiply, too).",
    )
    seed: int = key(42, "Seed of weights, data order and dropout.", ge=0, lt=2**31)
    entry: EntryConfig | None = key(
        None, "A training function of your own; none = the built-in recipe."
    )
    model: ModelConfig = key(ModelConfig(), "What to train.")
    distributed: DistributedConfig = key(DistributedConfig(), "How it is sharded.")
    dataset: DatasetConfig = key(DatasetConfig(), "Training data.")
    validation_dataset: DatasetConfig | None = key(None, "Validation data; none = no validation.")
    packed_sequence: PackedSequenceConfig = key(PackedSequenceConfig(), "Packing of documents.")
    step_scheduler: StepSchedulerConfig = key(StepSchedulerConfig(), "Steps and batch sizes.")
    dataloader: DataLoaderConfig = key(DataLoaderConfig(), "Loading of batches.")
    validation_dataloader: DataLoaderConfig | None = key(
        None, "Loading of validation data; default: as training."
    )
    optimizer: OptimizerConfig = key(OptimizerConfig(), "Optimizer.")
    lr_scheduler: LRSchedulerConfig = key(LRSchedulerConfig(), "Learning rate.")
    checkpoint: CheckpointConfig = key(CheckpointConfig(), "Checkpoints.")
    peft: PeftConfig | None = key(None, "LoRA adapters; none = all weights are trained.")
    training_optimizations: TrainingOptimizationsConfig = key(
        TrainingOptimizationsConfig(), "Speed and memory."
    )
    clip_grad_norm: ClipGradNormConfig | None = key(
        None, "Gradient clipping; none = training_optimizations."
    )
    compile: CompileConfig = key(CompileConfig(), "torch.compile.")
    sample: SampleConfig | None = key(None, "A text generated at the end; none = no text.")
    logging: LoggingConfig = key(LoggingConfig(), "What ranks record.")
    resilience: ResilienceConfig = key(ResilienceConfig(), "Budgets by cause.")
    slurm: SlurmConfig = key(SlurmConfig(), "Resources and sbatch options.")
    wandb: WandbConfig | None = key(None, "Weights & Biases; none = not used.")
    tensorboard: TensorboardConfig | None = key(None, "TensorBoard; none = off; {} = defaults.")
    trackio: TrackioConfig | None = key(None, "trackio; none = off; {} = defaults.")
    alerts: AlertsConfig = key(AlertsConfig(), "Where alerts go.")
    monitor: MonitorConfig = key(MonitorConfig(), "When something is one.")
    on_success: OptionalStr = key(None, "Shell command after a run that finished; none = nothing.")
    on_failure: OptionalStr = key(None, "Shell command after a run that failed for good.")
    after: OptionalStr = key(
        None,
        "Run (folder, name, unique beginning of it, latest) that must have finished before this "
        "one starts; none = start at once.",
    )
    hook_timeout_s: int = key(300, "Seconds for on_success or on_failure; then it is ended.", ge=1)

    @property
    def world_size(self) -> int:
        """Ranks over all nodes; of a range of nodes, at its upper end."""
        return self.slurm.nodes.max * self.slurm.ntasks_per_node

    @property
    def min_world_size(self) -> int:
        """Ranks at the lower end of a range of nodes."""
        return self.slurm.nodes.min * self.slurm.ntasks_per_node

    @property
    def local_batch_size(self) -> int:
        """Sequences per micro-batch and rank."""
        return self.dataloader.batch_size or self.step_scheduler.local_batch_size or 1

    @property
    def sequence_length(self) -> int:
        """Tokens of a packed sequence, or the longest sample without packing."""
        packed = self.packed_sequence
        return (
            (packed.packed_sequence_size or self.dataset.max_length)
            if self.packs
            else (self.dataset.max_length)
        )

    @property
    def packs(self) -> bool:
        """Whether documents are packed."""
        return self.packed_sequence.enabled and self.packed_sequence.packed_sequence_size != 0

    @property
    def max_grad_norm(self) -> float | None:
        """Largest global gradient norm, or None for no clipping."""
        if self.clip_grad_norm is not None:
            return self.clip_grad_norm.max_norm
        return self.training_optimizations.gradient_clipping

    @property
    def warmup_steps(self) -> int:
        """Steps of linear warm-up."""
        return self.step_scheduler.warmup_steps or self.lr_scheduler.lr_warmup_steps or 0

    @property
    def use_compile(self) -> bool:
        """Whether blocks are compiled."""
        return self.training_optimizations.use_compile or self.compile.enabled

    def batch(self, world_size: int | None = None) -> BatchArithmetic:
        """Batch arithmetic at ``world_size`` ranks; the global size is the configured world's.

        Raises:
            ValueError: the stated sizes contradict each other; the message shows the arithmetic.
        """
        local, scheduler = self.local_batch_size, self.step_scheduler
        configured = scheduler.grad_acc_steps or 1
        total = scheduler.global_batch_size or local * configured * self.world_size
        if scheduler.global_batch_size and scheduler.grad_acc_steps:
            product = local * configured * self.world_size
            if product != total:
                raise ValueError(
                    f"expected local batch x grad_acc_steps x world size = {local} x {configured} "
                    f"x {self.world_size} = {product}, got {total}; remove global_batch_size or "
                    "grad_acc_steps, or make them agree"
                )
        world = world_size or self.world_size
        return BatchArithmetic(local, math.ceil(total / (local * world)), world, total)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        problems = problems_of(self)
        if problems:
            raise ValueError("\n".join(problems))
        return self
