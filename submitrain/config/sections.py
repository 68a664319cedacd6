"""The configuration's sections: one frozen model each, every key with a doc, a unit and a default.

Keys and spellings are those of the NeMo AutoModel family, so its configurations load unchanged.
Imports no torch.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

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
    key,
)


class CheckpointConfig(Section):
    """What is saved, where, and how much of it is kept."""

    enabled: bool = key(True, "Save; false makes the run unable to survive anything.")
    checkpoint_dir: OptionalStr = key(
        None, "Folder of all runs' checkpoints; none = in the run folder."
    )
    model_save_format: Literal["safetensors", "torch_save"] = key(
        "safetensors", "Format of model weights in a checkpoint."
    )
    save_consolidated: Consolidated = key(
        "final", "Whole-model safetensors for from_pretrained: false/never, final, true/every."
    )
    keep_last_n_checkpoints: int = key(
        2,
        "Verified checkpoints kept; the newest verified one is never deleted.",
        spelled=("keep_last_n_checkpoints", "max_recent_checkpoints"),
        ge=1,
    )
    async_save: bool = key(
        True, "Write in the background while training goes on.", spelled=("async_save", "is_async")
    )


class SampleConfig(Section):
    """Text generated from the exported model when training is finished."""

    prompt: str = Field(description="What the model continues.")
    max_new_tokens: int = key(64, "Tokens to generate.", ge=1)


class WandbConfig(Section):
    """Weights & Biases, one run id across requeues; needs the wandb extra."""

    enabled: bool = key(True, "False keeps the section but sends nothing.")
    project: OptionalStr = key(None, "Project.")
    entity: OptionalStr = key(None, "Team or user.")
    name: OptionalStr = key(None, "Display name; default: the run's id.")
    tags: list[str] = key([], "Tags.")
    notes: OptionalStr = key(None, "Notes.")
    mode: Literal["online", "offline", "disabled"] | None = key(
        None, "wandb's mode; none = its own."
    )


class TensorboardConfig(Section):
    """TensorBoard's event files; needs the tensorboard extra."""

    enabled: bool = key(True, "False keeps the section but writes nothing.")
    log_dir: OptionalStr = key(
        None,
        "Folder of TensorBoard logs, in which the run gets its own; none = tensorboard/ in the "
        "run folder.",
    )
    flush_s: int = key(10, "Seconds between writes to disk.", ge=1)


class TrackioConfig(Section):
    """trackio, a local tracker; one run over all requeues; needs the trackio extra."""

    enabled: bool = key(True, "False keeps the section but sends nothing.")
    project: str = key("submitrain", "Project.")
    name: OptionalStr = key(None, "Run name; default: the run's id.")
    dir: OptionalStr = key(
        None, "Folder of trackio's databases; none = TRACKIO_DIR, else its cache."
    )
    space_id: OptionalStr = key(None, "Hugging Face Space (needs HF_TOKEN); none = local only.")


class EntryConfig(TargetSection):
    """A training function of your own instead of the built-in recipe; other keys go to it."""

    target: str = Field(
        alias="_target_",
        description="Import path of the training function; it gets a RunContext, and the other "
        "keys of this section as keyword arguments.",
    )


class ModelConfig(TargetSection):
    """Which Hugging Face causal LM to train, and how it computes."""

    target: Annotated[str, BeforeValidator(model_target)] = key(
        MODEL,
        "Model builder: hf_causal_lm (built in), or an alias of it such as "
        "nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained.",
        alias="_target_",
    )
    pretrained_model_name_or_path: OptionalStr = key(
        None, "Hub name or local folder of the model; its weights are loaded."
    )
    config: dict[str, Any] | None = key(
        None, "Inline Hugging Face config (model_type, hidden_size, ...): random weights."
    )
    tokenizer: OptionalStr = key(
        None, "Hub name or folder of the tokenizer; default: the model's own."
    )
    train_tokenizer_vocab_size: int | None = key(
        None, "Train a byte-level BPE tokenizer of this size on the training data instead.", ge=300
    )
    revision: OptionalStr = key(None, "Hub revision of model and tokenizer.")
    trust_remote_code: bool = key(False, "Run code shipped with the model.")
    torch_dtype: Dtype = key(
        "bfloat16",
        "Compute dtype, bfloat16 or float32; master weights and optimizer state are float32 "
        "always.",
        spelled=("torch_dtype", "dtype"),
    )
    attn_implementation: Literal["auto", "sdpa", "flash_attention_2", "eager"] = key(
        "auto", "Attention kernel; auto takes the fastest that is installed and says which."
    )
    use_liger_kernel: bool = key(False, "Fused kernels from the liger-kernel package.")


class DistributedConfig(TargetSection):
    """How the model is sharded over ranks."""

    target: Annotated[Literal["fsdp2"], BeforeValidator(distributed_target)] = key(
        "fsdp2", "fsdp2 (built in), or an alias: NVFSDPManager, FSDP2Manager.", alias="_target_"
    )
    dp_size: OptionalInt = key(None, "Data-parallel ranks; only the world size; none = that.", ge=1)
    dp_replicate_size: OptionalInt = key(
        None, "HSDP: number of replicas, sharded inside; none = 1 (shard over all ranks).", ge=1
    )
    tp_size: OptionalInt = key(None, "Tensor parallelism; only 1 is built.", ge=1)
    cp_size: OptionalInt = key(None, "Context parallelism; only 1 is built.", ge=1)
    backend: Literal["auto", "gloo", "nccl"] = key(
        "auto", "Collectives: nccl on GPUs, gloo on CPUs."
    )
    interface: OptionalStr = key(
        None,
        "Network interface by which ranks meet and reduce, several with commas where nodes differ "
        "(ib0,eth0); none = the host's name, then all its addresses, whichever answers.",
    )
    reshard_after_forward: bool | None = key(
        None,
        "Free full parameters after forward: less memory, one more gather; none = for models from "
        "2e9 parameters on, and when accumulation is 1.",
    )
    defer_grad_sync: bool | None = key(
        None,
        "Synchronise gradients only at the last micro-batch: faster, but keeps a full gradient on "
        "every rank; none = on for CPUs and models under 2e9 parameters.",
    )
    timeout_s: int = key(
        1800,
        "Time limit of a collective, in seconds: the last resort behind resilience.hang, whose "
        "budgets end at 0.9 x this, so that a hung rank is named before its peers give up.",
        ge=10,
    )


class DatasetConfig(TargetSection):
    """Instruction data: a hub name, a local JSONL or Parquet file, or built-in text."""

    target: Annotated[str, BeforeValidator(dataset_target)] = key(
        TEXT,
        "text_instruction, python_stdlib (offline text), or the import path of a map-style data "
        "set, which gets the other keys.",
        alias="_target_",
    )
    dataset_name: OptionalStr = key(
        None,
        "Hub name (tatsu-lab/alpaca) or path of a JSONL/Parquet file or folder.",
        spelled=("dataset_name", "path_or_dataset", "path_or_dataset_id"),
    )
    split: str = key("train", "Split, with slices as in train[:90%].")
    max_length: int = key(
        2048,
        "Longest sequence in tokens; longer samples are cut and counted.",
        spelled=("max_length", "seq_length", "seq_len"),
        ge=8,
    )
    column_mapping: dict[str, str] | None = key(
        None,
        "Our roles (messages | instruction, input, output | prompt, response | text) to the "
        "data's columns, or to values in them (answers.text.0); none = recognised by name.",
    )
    answer_only_loss_mask: bool = key(True, "No loss on the prompt's tokens.")
    chat_template: OptionalStr = key(
        None, "Jinja template, or path of one, instead of the tokenizer's."
    )
    cache_dir: OptionalStr = key(None, "Folder of tokenized data and downloads.")
    num_workers: int = key(0, "Processes for tokenizing; 0 = in this one.", ge=0)
    num_samples_limit: OptionalInt = key(
        None,
        "Use only the first so many samples.",
        spelled=("num_samples_limit", "limit_dataset_samples"),
        ge=1,
    )


class PackedSequenceConfig(Section):
    """Several documents in one sequence, kept apart in attention, positions and loss."""

    enabled: bool = key(True, "Pack; false = one document per sequence.")
    packed_sequence_size: OptionalInt = key(
        None, "Length of a packed sequence in tokens; none = max_length; 0 = off.", ge=0
    )


class StepSchedulerConfig(Section):
    """How many steps, of what size. Steps are optimizer steps everywhere."""

    grad_acc_steps: OptionalInt = key(None, "Micro-batches per step and rank.", ge=1)
    global_batch_size: OptionalInt = key(None, "Sequences per step over all ranks.", ge=1)
    local_batch_size: OptionalInt = key(
        None, "Same as dataloader.batch_size: sequences per micro-batch and rank.", ge=1
    )
    max_steps: OptionalInt = key(None, "Stop after so many steps.", ge=1)
    num_epochs: OptionalInt = key(None, "Passes over the data; default 1 without max_steps.", ge=1)
    ckpt_every_steps: EverySteps = key(
        500,
        "Steps between checkpoints; auto = from the measured cost of a save and resilience.mttf, "
        "at most 30 minutes of work at risk; none = only at the end or when stopped.",
    )
    val_every_steps: OptionalInt = key(
        None, "Steps between validations; none = only at the end.", ge=1
    )
    warmup_steps: OptionalInt = key(None, "Steps of linear warm-up.", ge=0)


class DataLoaderConfig(Section):
    """How micro-batches are loaded."""

    target: Annotated[
        Literal["torchdata.stateful_dataloader.StatefulDataLoader"], BeforeValidator(loader_target)
    ] = key(
        "torchdata.stateful_dataloader.StatefulDataLoader",
        "Loader class; only this one is built in.",
        alias="_target_",
    )
    batch_size: OptionalInt = key(None, "Sequences per micro-batch and rank; default 1.", ge=1)
    shuffle: bool = key(
        True,
        "New order every epoch, from seed and epoch alone; validation is one pass in which order "
        "changes nothing.",
    )
    num_workers: int = key(0, "Loader processes per rank.", ge=0)
    pin_memory: bool = key(False, "Page-locked host memory (GPU only).")
    persistent_workers: bool = key(False, "Keep loader processes between epochs.")
    prefetch_factor: OptionalInt = key(
        None, "Batches ahead per worker; needs num_workers > 0.", ge=1
    )
    drop_last: bool = key(False, "Accepted as false only: no sample is ever dropped.")


class OptimizerConfig(TargetSection):
    """Any torch optimizer; further keys are its own (betas, eps, momentum, ...)."""

    target: str = key("torch.optim.AdamW", "Import path of a torch Optimizer.", alias="_target_")
    lr: float = key(1e-4, "Peak learning rate.", gt=0)
    weight_decay: float | None = key(
        None, "Weight decay, not applied to norms and biases; none = the optimizer's own.", ge=0
    )


class LRSchedulerConfig(Section):
    """Learning rate as a pure function of the step."""

    lr_decay_style: Literal["constant", "linear", "cosine"] = key("cosine", "Decay after warm-up.")
    lr_warmup_steps: OptionalInt = key(None, "Same as step_scheduler.warmup_steps.", ge=0)
    lr_decay_steps: OptionalInt = key(None, "Step that reaches min_lr; none = the last step.", ge=1)
    min_lr: float = key(0.0, "Learning rate at the end of the decay.", ge=0)


class PeftConfig(Section):
    """LoRA adapters through the peft package; the base model is frozen."""

    target: Annotated[Literal["lora"], BeforeValidator(peft_target)] = key(
        "lora", "lora, or an alias: nemo_automodel's PeftConfig.", alias="_target_"
    )
    dim: int = key(8, "Rank of the adapters.", spelled=("dim", "r"), ge=1)
    alpha: int = key(
        32, "Adapters are scaled by alpha / dim.", spelled=("alpha", "lora_alpha"), ge=1
    )
    dropout: float = key(
        0.0,
        "Probability of dropout before the adapter.",
        spelled=("dropout", "lora_dropout"),
        ge=0,
        lt=1,
    )
    target_modules: list[str] | str = key(
        "all-linear", "Names of the adapted modules, or all-linear."
    )
    match_all_linear: bool | None = key(
        None, "Same as target_modules: all-linear (true) or a list of names (false)."
    )


class TrainingOptimizationsConfig(Section):
    """Speed and memory switches."""

    gradient_clipping: float | None = key(
        None, "Same as clip_grad_norm.max_norm; none = off.", gt=0
    )
    activation_checkpointing: bool = key(
        False, "Recompute activations in backward: less memory, slower."
    )
    use_compile: bool = key(False, "torch.compile for every transformer block.")


class ClipGradNormConfig(Section):
    """Clipping of the global gradient norm."""

    max_norm: float | None = key(1.0, "Largest norm; none = no clipping.", gt=0)


class CompileConfig(Section):
    """torch.compile, spelled as that family spells it now."""

    enabled: bool = key(False, "Same as training_optimizations.use_compile.")
    mode: str = key("default", "torch.compile's mode.")
    fullgraph: bool = key(False, "torch.compile's fullgraph.")
    dynamic: bool | None = key(None, "torch.compile's dynamic.")
