"""The configuration's sections: one frozen model each, every key with a doc, a unit and a default.

Keys and spellings are those of the NeMo AutoModel family, so its configurations load unchanged.
Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field

from train.config.types import Dtype, DurationS, OptionalInt, OptionalStr, Secret, none_word


class Section(BaseModel):
    """Base of all sections: immutable, unknown keys refused."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, populate_by_name=True, protected_namespaces=()
    )


class TargetSection(Section):
    """A section that names a component by import path; its other keys are that component's."""

    model_config = ConfigDict(
        extra="allow", frozen=True, populate_by_name=True, protected_namespaces=()
    )

    @property
    def extra(self) -> dict[str, Any]:
        """Keyword arguments meant for the component itself."""
        return dict(self.__pydantic_extra__ or {})


class EntryConfig(TargetSection):
    """The user's own training function instead of the built-in recipe."""

    target: str = Field(alias="_target_", description="Import path of the training function.")


class ModelConfig(TargetSection):
    """Which Hugging Face causal LM to train, and how it computes."""

    target: str = Field(
        "hf_causal_lm",
        alias="_target_",
        description="Model builder: hf_causal_lm (built in) or an import path.",
    )
    pretrained_model_name_or_path: OptionalStr = Field(
        None, description="Hub name or local folder of the model; its weights are loaded."
    )
    config: dict[str, Any] | None = Field(
        None,
        description="Inline Hugging Face config (model_type, hidden_size, ...): random weights.",
    )
    tokenizer: OptionalStr = Field(
        None, description="Hub name or folder of the tokenizer; default: the model's own."
    )
    train_tokenizer_vocab_size: int | None = Field(
        None,
        ge=300,
        description="Train a byte-level BPE tokenizer of this size on the training data instead.",
    )
    revision: OptionalStr = Field(None, description="Hub revision of model and tokenizer.")
    trust_remote_code: bool = Field(False, description="Run code shipped with the model.")
    torch_dtype: Dtype = Field(
        "bfloat16",
        validation_alias=AliasChoices("torch_dtype", "dtype"),
        description="Compute dtype; master weights and optimizer state stay float32.",
    )
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "eager"] = Field(
        "auto",
        description="Attention kernel; auto takes the fastest that is installed and says which.",
    )
    use_liger_kernel: bool = Field(
        False, description="Fused kernels from the liger-kernel package."
    )


class DistributedConfig(TargetSection):
    """How the model is sharded over ranks."""

    target: str = Field(
        "fsdp2", alias="_target_", description="fsdp2 (built in) or an alias of it."
    )
    dp_size: OptionalInt = Field(None, ge=1, description="Data-parallel ranks; none = world size.")
    dp_replicate_size: OptionalInt = Field(
        None,
        ge=1,
        description="HSDP: number of replicas, sharded inside; none = 1 (shard over all ranks).",
    )
    tp_size: OptionalInt = Field(None, description="Tensor parallelism; only 1 is built.")
    cp_size: OptionalInt = Field(None, description="Context parallelism; only 1 is built.")
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="Collectives: nccl on GPUs, gloo on CPUs."
    )
    reshard_after_forward: bool | None = Field(
        None, description="Free full parameters after forward; none = only when accumulation is 1."
    )
    defer_grad_sync: bool | None = Field(
        None,
        description="Synchronise gradients only at the last micro-batch: faster, but keeps a full "
        "gradient on every rank; none = on for CPUs and models under 2e9 parameters.",
    )
    timeout_s: int = Field(1800, ge=10, description="Time limit of a collective, in seconds.")


class DatasetConfig(TargetSection):
    """Instruction data: a hub name, a local JSONL or Parquet file, or built-in text."""

    target: str = Field(
        "text_instruction",
        alias="_target_",
        description="text_instruction, python_stdlib (offline text), or an import path.",
    )
    dataset_name: OptionalStr = Field(
        None,
        validation_alias=AliasChoices("dataset_name", "path_or_dataset", "path_or_dataset_id"),
        description="Hub name (tatsu-lab/alpaca) or path of a JSONL/Parquet file or folder.",
    )
    split: str = Field("train", description="Split, with slices as in train[:90%].")
    max_length: int = Field(
        2048,
        ge=8,
        validation_alias=AliasChoices("max_length", "seq_length", "seq_len"),
        description="Longest sequence in tokens; longer samples are cut and counted.",
    )
    column_mapping: dict[str, str] | None = Field(
        None,
        description="Our roles (messages | instruction, input, output | prompt, response | text) "
        "to the data's columns; none = recognised by name.",
    )
    answer_only_loss_mask: bool = Field(True, description="No loss on the prompt's tokens.")
    chat_template: OptionalStr = Field(
        None, description="Jinja template, or path of one, instead of the tokenizer's."
    )
    cache_dir: OptionalStr = Field(None, description="Folder of tokenized data and downloads.")
    num_workers: int = Field(0, ge=0, description="Processes for tokenizing; 0 = in this one.")
    num_samples_limit: OptionalInt = Field(
        None,
        ge=1,
        validation_alias=AliasChoices("num_samples_limit", "limit_dataset_samples"),
        description="Use only the first so many samples.",
    )


class PackedSequenceConfig(Section):
    """Several documents in one sequence, kept apart in attention, positions and loss."""

    enabled: bool = Field(True, description="Pack; false = one document per sequence.")
    packed_sequence_size: OptionalInt = Field(
        None, ge=0, description="Length of a packed sequence in tokens; none = max_length; 0 = off."
    )


class StepSchedulerConfig(Section):
    """How many steps, of what size. Steps are optimizer steps everywhere."""

    grad_acc_steps: OptionalInt = Field(None, ge=1, description="Micro-batches per step and rank.")
    global_batch_size: OptionalInt = Field(
        None, ge=1, description="Sequences per step over all ranks."
    )
    local_batch_size: OptionalInt = Field(
        None, ge=1, description="Same as dataloader.batch_size: sequences per micro-batch and rank."
    )
    max_steps: OptionalInt = Field(None, ge=1, description="Stop after so many steps.")
    num_epochs: OptionalInt = Field(
        None, ge=1, description="Passes over the data; default 1 if max_steps is not given."
    )
    ckpt_every_steps: OptionalInt = Field(
        500, ge=1, description="Steps between checkpoints; none = only at the end or when stopped."
    )
    val_every_steps: OptionalInt = Field(
        None, ge=1, description="Steps between validations; none = only at the end."
    )
    warmup_steps: OptionalInt = Field(None, ge=0, description="Steps of linear warm-up.")


class DataLoaderConfig(Section):
    """How micro-batches are loaded."""

    target: str = Field(
        "torchdata.stateful_dataloader.StatefulDataLoader",
        alias="_target_",
        description="Loader class; only torchdata's StatefulDataLoader is built in.",
    )
    batch_size: OptionalInt = Field(
        None, ge=1, description="Sequences per micro-batch and rank; default 1."
    )
    shuffle: bool = Field(True, description="New order every epoch, from seed and epoch alone.")
    num_workers: int = Field(0, ge=0, description="Loader processes per rank.")
    pin_memory: bool = Field(False, description="Page-locked host memory (GPU only).")
    persistent_workers: bool = Field(False, description="Keep loader processes between epochs.")
    prefetch_factor: OptionalInt = Field(
        None, ge=1, description="Batches loaded ahead by each worker; needs num_workers > 0."
    )
    drop_last: bool = Field(False, description="Accepted as false only: no sample is ever dropped.")


class OptimizerConfig(TargetSection):
    """Any torch optimizer; further keys are its own (betas, eps, momentum, ...)."""

    target: str = Field(
        "torch.optim.AdamW", alias="_target_", description="Import path of a torch Optimizer."
    )
    lr: float = Field(1e-4, gt=0, description="Peak learning rate.")
    weight_decay: float | None = Field(
        None, ge=0, description="Weight decay; not applied to norms and biases."
    )


class LRSchedulerConfig(Section):
    """Learning rate as a pure function of the step."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = Field(
        "cosine", description="Shape of the decay after warm-up."
    )
    lr_warmup_steps: OptionalInt = Field(
        None, ge=0, description="Same as step_scheduler.warmup_steps."
    )
    lr_decay_steps: OptionalInt = Field(
        None, ge=1, description="Step at which min_lr is reached; none = the last step."
    )
    min_lr: float = Field(0.0, ge=0, description="Learning rate at the end of the decay.")


def _save_consolidated(value: Any) -> Any:
    if isinstance(value, bool):
        return "every" if value else "never"
    return none_word(value) or "never"


class CheckpointConfig(Section):
    """What is saved, where, and how much of it is kept."""

    enabled: bool = Field(True, description="Save; false makes the run unable to survive anything.")
    checkpoint_dir: OptionalStr = Field(
        None, description="Folder for checkpoints of all runs; none = inside the run folder."
    )
    model_save_format: Literal["safetensors", "torch_save"] = Field(
        "safetensors", description="Format of model weights in a checkpoint."
    )
    save_consolidated: Annotated[
        Literal["never", "final", "every"], BeforeValidator(_save_consolidated)
    ] = Field(
        "final",
        description="Whole-model safetensors for from_pretrained: false/never, final, true/every.",
    )
    keep_last_n_checkpoints: int = Field(
        2,
        ge=1,
        validation_alias=AliasChoices("keep_last_n_checkpoints", "max_recent_checkpoints"),
        description="Verified checkpoints kept; the newest verified one is never deleted.",
    )
    async_save: bool = Field(
        True,
        validation_alias=AliasChoices("async_save", "is_async"),
        description="Write in the background while training goes on.",
    )


class PeftConfig(Section):
    """LoRA adapters through the peft package; the base model is frozen."""

    target: str = Field("lora", alias="_target_", description="lora, or an alias of it.")
    dim: int = Field(8, ge=1, validation_alias=AliasChoices("dim", "r"), description="Rank.")
    alpha: int = Field(
        32, ge=1, validation_alias=AliasChoices("alpha", "lora_alpha"), description="Scale."
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("dropout", "lora_dropout"),
        description="Dropout before the adapter.",
    )
    target_modules: list[str] | str = Field(
        "all-linear", description="Names of the adapted modules, or all-linear."
    )


class TrainingOptimizationsConfig(Section):
    """Speed and memory switches."""

    gradient_clipping: float | None = Field(
        None, gt=0, description="Same as clip_grad_norm.max_norm."
    )
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in backward: less memory, slower."
    )
    use_compile: bool = Field(False, description="torch.compile for every transformer block.")


class ClipGradNormConfig(Section):
    """Clipping of the global gradient norm."""

    max_norm: float | None = Field(1.0, gt=0, description="Largest norm; none = no clipping.")


class CompileConfig(Section):
    """torch.compile, spelled as that family spells it now."""

    enabled: bool = Field(False, description="Same as training_optimizations.use_compile.")
    mode: str = Field("default", description="torch.compile's mode.")
    fullgraph: bool = Field(False, description="torch.compile's fullgraph.")
    dynamic: bool | None = Field(None, description="torch.compile's dynamic.")


class SampleConfig(Section):
    """Text generated from the exported model when training is finished."""

    prompt: str = Field(description="What the model continues.")
    max_new_tokens: int = Field(64, ge=1, description="Tokens to generate.")


class WandbConfig(Section):
    """Weights & Biases, one run id across requeues; needs the wandb extra."""

    enabled: bool = Field(True, description="False keeps the section but sends nothing.")
    project: OptionalStr = Field(None, description="Project.")
    entity: OptionalStr = Field(None, description="Team or user.")
    name: OptionalStr = Field(None, description="Display name; default: the run's id.")
    tags: list[str] = Field(default=[], description="Tags.")
    notes: OptionalStr = Field(None, description="Notes.")
    mode: Literal["online", "offline", "disabled"] | None = Field(
        None, description="wandb's mode; none = wandb's own choice."
    )


class ResilienceConfig(Section):
    """How often what may go wrong before the run stops, by cause."""

    max_restarts: int = Field(
        10, ge=0, description="Restarts in place after a rank died, while steps advance."
    )
    max_requeues: int = Field(
        1000, ge=0, description="Returns to the queue (time limit, preemption)."
    )
    max_attempts_without_progress: int = Field(
        3, ge=1, description="Attempts in a row without a new step before a crash loop is called."
    )
    stop_lead_s: OptionalInt = Field(
        None,
        ge=1,
        description="Seconds before the time limit at which ranks are asked to save and stop; "
        "none = from the measured step and save time.",
    )
    kill_wait_s: int = Field(
        30, ge=1, description="Seconds that ranks get to save after TERM before they are killed."
    )


class LoggingConfig(Section):
    """What the ranks record."""

    log_sample_ids: bool = Field(
        False, description="Record the ids of the samples consumed in every step, per rank."
    )
    log_every_steps: int = Field(1, ge=1, description="Steps between metric events of rank 0.")
    heartbeat_s: float = Field(5.0, gt=0, description="Seconds between heartbeats of a rank.")


class SlurmConfig(Section):
    """The resources, and everything else sbatch knows; also shapes local runs (nodes x tasks)."""

    job_name: OptionalStr = Field(None, description="Job name; default: the run's name.")
    nodes: int = Field(1, ge=1, description="Nodes.")
    ntasks_per_node: int = Field(1, ge=1, description="Ranks per node: one for every GPU.")
    time: DurationS = Field(86400, description="Time limit of one job; a requeue starts it anew.")
    account: OptionalStr = Field(None, description="Account to charge.")
    partition: OptionalStr = Field(None, description="Partition, or several with commas.")
    qos: OptionalStr = Field(None, description="Quality of service.")
    gpus_per_node: OptionalInt = Field(
        None, ge=0, description="GPUs per node; default ntasks_per_node where the cluster has GPUs."
    )
    gpu_type: OptionalStr = Field(None, description="GPU type for --gpus-per-node (h100).")
    gres: OptionalStr = Field(None, description="Generic resources, instead of gpus_per_node.")
    cpus_per_task: OptionalInt = Field(None, ge=1, description="CPU cores per rank.")
    mem: OptionalStr = Field(None, description="Memory per node (0 = all, 64G).")
    mem_per_cpu: OptionalStr = Field(None, description="Memory per CPU core.")
    constraint: OptionalStr = Field(None, description="Required node features.")
    nodelist: OptionalStr = Field(None, description="Nodes to use.")
    exclude: OptionalStr = Field(None, description="Nodes to avoid.")
    exclusive: bool = Field(False, description="Whole nodes.")
    reservation: OptionalStr = Field(None, description="Reservation.")
    dependency: OptionalStr = Field(None, description="Job dependency (afterok:123).")
    begin: OptionalStr = Field(None, description="Earliest start.")
    mail_type: OptionalStr = Field(None, description="Slurm mail events.")
    mail_user: OptionalStr = Field(None, description="Receiver of Slurm mail.")
    comment: OptionalStr = Field(None, description="Comment of the job.")
    requeue: bool = Field(True, description="Let Slurm requeue the job after preemption.")
    signal_lead_s: int = Field(
        120, ge=1, le=65535, description="Seconds before the limit at which Slurm warns the ranks."
    )
    additional_parameters: dict[str, Any] = Field(
        default={}, description="Any other sbatch option by its long name."
    )
    srun_args: list[str] = Field(default=[], description="Further options of the ranks' srun.")
    setup: list[str] = Field(
        default=[], description="Shell commands before the supervisor starts (module load ...)."
    )
    env: dict[str, str] = Field(
        default={}, description="Environment of the ranks; values may be ${VAR} placeholders."
    )
    container_image: OptionalStr = Field(
        None, description="Image for the ranks (pyxis/enroot); the supervisor stays outside."
    )
    extra_mounts: list[str] = Field(
        default=[], description="Mounts into the container, src:dst[:ro]."
    )
    container_workdir: OptionalStr = Field(None, description="Working directory inside.")
    hf_home: OptionalStr = Field(None, description="HF_HOME of the ranks: the hub cache.")
    hf_token: Secret = Field(None, description="HF_TOKEN of the ranks, as ${VAR} only.")
    wandb_key: Secret = Field(None, description="WANDB_API_KEY of the ranks, as ${VAR} only.")
