"""The configuration's sections: one frozen model each, every key with a doc, a unit and a default.

Keys and spellings are those of the NeMo AutoModel family, so its configurations load unchanged.
Imports no torch.

Sections about what a run leaves: checkpoints, a sample text, metrics. Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AliasChoices, BeforeValidator, Field

from submitrain.config.automodel import (
    MODEL,
    TEXT,
    dataset_target,
    distributed_target,
    loader_target,
    model_target,
    peft_target,
)
from submitrain.config.types import (
    Consolidated,
    Dtype,
    EverySteps,
    OptionalInt,
    OptionalStr,
    Section,
    TargetSection,
)


class CheckpointConfig(Section):
    """What is saved, where, and how much of it is kept."""

    enabled: bool = Field(True, description="Save; false makes the run unable to survive anything.")
    checkpoint_dir: OptionalStr = Field(
        None, description="Folder for checkpoints of all runs; none = inside the run folder."
    )
    model_save_format: Literal["safetensors", "torch_save"] = Field(
        "safetensors", description="Format of model weights in a checkpoint."
    )
    save_consolidated: Consolidated = Field(
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


class TensorboardConfig(Section):
    """TensorBoard's event files; needs the tensorboard extra."""

    enabled: bool = Field(True, description="False keeps the section but writes nothing.")
    log_dir: OptionalStr = Field(
        None,
        description="Folder of TensorBoard logs, in which the run gets its own; none = "
        "tensorboard/ in the run folder.",
    )
    flush_s: int = Field(10, ge=1, description="Seconds between writes to disk.")


class TrackioConfig(Section):
    """trackio, a local tracker; one run over all requeues; needs the trackio extra."""

    enabled: bool = Field(True, description="False keeps the section but sends nothing.")
    project: str = Field("submitrain", description="Project.")
    name: OptionalStr = Field(None, description="Run name; default: the run's id.")
    dir: OptionalStr = Field(
        None, description="Folder of trackio's databases; none = TRACKIO_DIR, else its cache."
    )
    space_id: OptionalStr = Field(
        None, description="Hugging Face Space to send to (needs HF_TOKEN); none = local only."
    )


class EntryConfig(TargetSection):
    """A training function of your own instead of the built-in recipe; other keys go to it."""

    target: str = Field(
        alias="_target_",
        description="Import path of the training function; it gets a RunContext, and the other "
        "keys of this section as keyword arguments.",
    )


class ModelConfig(TargetSection):
    """Which Hugging Face causal LM to train, and how it computes."""

    target: Annotated[str, BeforeValidator(model_target)] = Field(
        MODEL,
        alias="_target_",
        description="Model builder: hf_causal_lm (built in), or an alias of it such as "
        "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained.",
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
        description="Compute dtype, bfloat16 or float32; master weights and optimizer state are "
        "float32 always.",
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

    target: Annotated[Literal["fsdp2"], BeforeValidator(distributed_target)] = Field(
        "fsdp2",
        alias="_target_",
        description="fsdp2 (built in), or an alias: NVFSDPManager, FSDP2Manager.",
    )
    dp_size: OptionalInt = Field(
        None, ge=1, description="Data-parallel ranks; only the world size; none = that."
    )
    dp_replicate_size: OptionalInt = Field(
        None,
        ge=1,
        description="HSDP: number of replicas, sharded inside; none = 1 (shard over all ranks).",
    )
    tp_size: OptionalInt = Field(None, ge=1, description="Tensor parallelism; only 1 is built.")
    cp_size: OptionalInt = Field(None, ge=1, description="Context parallelism; only 1 is built.")
    backend: Literal["auto", "gloo", "nccl"] = Field(
        "auto", description="Collectives: nccl on GPUs, gloo on CPUs."
    )
    interface: OptionalStr = Field(
        None,
        description="Network interface by which ranks meet and reduce, several with commas where "
        "nodes differ (ib0,eth0); none = the host's name, then all its addresses, whichever "
        "answers.",
    )
    reshard_after_forward: bool | None = Field(
        None,
        description="Free full parameters after forward: less memory, one more gather; none = for "
        "models from 2e9 parameters on, and when accumulation is 1.",
    )
    defer_grad_sync: bool | None = Field(
        None,
        description="Synchronise gradients only at the last micro-batch: faster, but keeps a full "
        "gradient on every rank; none = on for CPUs and models under 2e9 parameters.",
    )
    timeout_s: int = Field(
        1800,
        ge=10,
        description="Time limit of a collective, in seconds: the last resort behind "
        "resilience.hang, whose budgets end at 0.9 x this, so that a hung rank is named before its "
        "peers give up.",
    )


class DatasetConfig(TargetSection):
    """Instruction data: a hub name, a local JSONL or Parquet file, or built-in text."""

    target: Annotated[str, BeforeValidator(dataset_target)] = Field(
        TEXT,
        alias="_target_",
        description="text_instruction, python_stdlib (offline text), or the import path of a "
        "map-style data set, which gets the other keys.",
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
        "to the data's columns, or to values in them (answers.text.0); none = recognised by name.",
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
    ckpt_every_steps: EverySteps = Field(
        500,
        description="Steps between checkpoints; auto = from the measured cost of a save and "
        "resilience.mttf, at most 30 minutes of work at risk; none = only at the end or when "
        "stopped.",
    )
    val_every_steps: OptionalInt = Field(
        None, ge=1, description="Steps between validations; none = only at the end."
    )
    warmup_steps: OptionalInt = Field(None, ge=0, description="Steps of linear warm-up.")


class DataLoaderConfig(Section):
    """How micro-batches are loaded."""

    target: Annotated[
        Literal["torchdata.stateful_dataloader.StatefulDataLoader"], BeforeValidator(loader_target)
    ] = Field(
        "torchdata.stateful_dataloader.StatefulDataLoader",
        alias="_target_",
        description="Loader class; only this one is built in.",
    )
    batch_size: OptionalInt = Field(
        None, ge=1, description="Sequences per micro-batch and rank; default 1."
    )
    shuffle: bool = Field(
        True,
        description="New order every epoch, from seed and epoch alone; validation is one pass in "
        "which order changes nothing.",
    )
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
        None,
        ge=0,
        description="Weight decay, not applied to norms and biases; none = the optimizer's own.",
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


class PeftConfig(Section):
    """LoRA adapters through the peft package; the base model is frozen."""

    target: Annotated[Literal["lora"], BeforeValidator(peft_target)] = Field(
        "lora", alias="_target_", description="lora, or an alias: nemo_automodel's PeftConfig."
    )
    dim: int = Field(
        8, ge=1, validation_alias=AliasChoices("dim", "r"), description="Rank of the adapters."
    )
    alpha: int = Field(
        32,
        ge=1,
        validation_alias=AliasChoices("alpha", "lora_alpha"),
        description="Adapters are scaled by alpha / dim.",
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        validation_alias=AliasChoices("dropout", "lora_dropout"),
        description="Probability of dropout before the adapter.",
    )
    target_modules: list[str] | str = Field(
        "all-linear", description="Names of the adapted modules, or all-linear."
    )
    match_all_linear: bool | None = Field(
        None, description="Same as target_modules: all-linear (true) or a list of names (false)."
    )


class TrainingOptimizationsConfig(Section):
    """Speed and memory switches."""

    gradient_clipping: float | None = Field(
        None, gt=0, description="Same as clip_grad_norm.max_norm; none = no clipping."
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
