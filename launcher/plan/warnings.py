"""What may go wrong with a valid configuration: one line each, with the next step. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches

from submitrain.config import RunConfig
from submitrain.config.types import UNLIMITED_S, format_duration
from submitrain.launcher.container import (
    ImageForm,
    Runtime,
    choose_runtime,
    form_of,
    normalise_image,
)
from submitrain.launcher.container_paths import must_be_path as is_path
from submitrain.launcher.plan.memory import GB, Machine, MemoryEstimate, gpu_memory_bytes
from submitrain.launcher.plan.sbatch import option_warnings

MODEL_KEYS = frozenset(
    """
    model_type architectures hidden_size intermediate_size num_hidden_layers num_attention_heads
    num_key_value_heads head_dim vocab_size max_position_embeddings hidden_act hidden_dropout
    rms_norm_eps layer_norm_eps layer_norm_epsilon initializer_range tie_word_embeddings
    rope_theta rope_scaling rope_parameters partial_rotary_factor attention_dropout
    attention_bias attention_probs_dropout_prob hidden_dropout_prob mlp_bias sliding_window
    use_sliding_window max_window_layers layer_types use_cache n_embd n_layer n_head n_positions
    n_inner n_ctx embd_pdrop resid_pdrop attn_pdrop activation_function num_experts
    num_local_experts num_experts_per_tok moe_intermediate_size bos_token_id eos_token_id
    pad_token_id torch_dtype dtype num_heads num_layers hidden_sizes d_model ffn_dim
    word_embed_proj_dim
    """.split()  # noqa: SIM905 - a list of words reads better
)
"""Usual keys of the configurations of causal language models in transformers."""
LONG_S = 14 * 24 * 3600
"""Few partitions allow more than a week or two."""


@dataclass(frozen=True)
class Situation:
    """What a warning may depend on besides the configuration."""

    cluster: str
    on_gpu: bool
    machine: Machine | None
    """Of a local run."""
    rank_memory: MemoryEstimate | None
    runtimes: frozenset[Runtime] = frozenset()
    """Container runtimes on this machine."""


def config_warnings(config: RunConfig, situation: Situation) -> Iterator[str]:
    """All warnings for a run, the most serious kinds first."""
    slurm, steps = config.slurm, config.step_scheduler
    if not config.checkpoint.enabled:
        yield (
            "checkpoint.enabled is false: nothing is saved, so every restart begins at step 0; "
            "set it to true"
        )
    elif steps.ckpt_every_steps is None:
        yield (
            "step_scheduler.ckpt_every_steps is none: a crash loses everything since the start; "
            "set it to a number of steps"
        )
    if situation.cluster == "slurm" and not (slurm.requeue or config.resilience.resubmit):
        yield (
            "slurm.requeue and resilience.resubmit are false: after a preemption, a lost node or "
            "the time limit the run does not come back; set one of them to true"
        )
    for key in config.model.config or {}:  # transformers ignores a key that it does not know
        near = get_close_matches(key, MODEL_KEYS, n=1, cutoff=0.85)
        if near and key not in MODEL_KEYS:
            yield (
                f"model.config.{key} looks like {near[0]}, and transformers ignores what it does "
                f"not know; write {near[0]} if that is meant"
            )
    yield from _memory(config, situation)
    if config.validation_dataset is not None and _same_data(config):
        yield (
            "validation_dataset is the training data: its loss says nothing about new text; hold "
            "some back, for example split: train[:95%] and train[95%:]"
        )
    for world_size in dict.fromkeys((config.world_size, config.min_world_size)):
        batch = config.batch(world_size)
        if batch.global_size < world_size:
            yield (
                f"a step has {batch.global_size} sequences for {world_size} ranks: some ranks have "
                "nothing to do; use fewer ranks or a larger step_scheduler.global_batch_size"
            )
        elif batch.local_size * batch.accumulation * world_size != batch.global_size:
            yield f"the batch does not divide evenly: {batch.text}; the empty slots cost time"
    if situation.cluster == "slurm":
        yield from _long_time_limit(slurm.time)
        yield from option_warnings(slurm)
    yield from _container(config, situation)
    machine = situation.machine
    if machine is not None and config.world_size > machine.cpus:
        yield (
            f"{config.world_size} ranks share {machine.cpus} CPU cores of this machine: expect "
            "slow steps"
        )
    if not situation.on_gpu:
        yield from _without_gpu(config)


def _memory(config: RunConfig, situation: Situation) -> Iterator[str]:
    memory, machine = situation.rank_memory, situation.machine
    if memory is None:
        return
    if situation.on_gpu:
        limit = gpu_memory_bytes(config.slurm.gpu_type or "")
        if limit is not None and memory.total > limit:
            yield (
                f"a rank needs about {memory.total / GB:.0f} GB, GPUs of type "
                f"{config.slurm.gpu_type} have {limit / GB:.0f} GB: {_relief(config, memory)}"
            )
    elif machine is not None and memory.total * config.world_size > machine.memory_bytes:
        yield (
            f"{config.world_size} ranks need about {memory.total * config.world_size / GB:.1f} GB "
            f"together, this machine has {machine.memory_bytes / GB:.1f} GB: "
            f"{_relief(config, memory)}"
        )


def _relief(config: RunConfig, memory: MemoryEstimate) -> str:
    """The setting that frees most."""
    if memory.activations + memory.logits > memory.total // 2:
        if not config.training_optimizations.activation_checkpointing:
            return "set training_optimizations.activation_checkpointing: true or a smaller batch"
        return "lower dataloader.batch_size or dataset.max_length"
    if memory.gathered > memory.total // 3 and not config.distributed.reshard_after_forward:
        return "set distributed.reshard_after_forward: true"
    if memory.gradients > memory.total // 3 and config.distributed.defer_grad_sync is not False:
        return "set distributed.defer_grad_sync: false"
    return "use more nodes, or LoRA (peft)"


def _same_data(config: RunConfig) -> bool:
    one, other = (
        (data.target, data.dataset_name, data.split, sorted(map(str, data.extra.items())))
        for data in (config.dataset, config.validation_dataset or config.dataset)
    )
    return one == other


def _long_time_limit(limit: int) -> Iterator[str]:
    if LONG_S < limit < UNLIMITED_S:
        minutes = limit // 60
        hint = (
            f"; YAML reads an unquoted {minutes // 3600}:{minutes % 3600 // 60:02d}:00 as "
            f"{minutes}, which is a number of minutes here: quote it"
            if limit % 60 == 0 and minutes % 60 == 0
            else "; see the partition's MaxTime (sinfo -o '%P %l')"
        )
        yield f"slurm.time is very long ({format_duration(limit)}){hint}"


def _container(config: RunConfig, situation: Situation) -> Iterator[str]:
    slurm, image = config.slurm, config.slurm.container_image or ""
    if not slurm.in_container:
        return
    if situation.cluster == "local":
        yield (
            "slurm.container_image has no effect on this machine: ranks of local runs run bare, in "
            "this Python environment"
        )
        return
    model = config.model
    names = [model.pretrained_model_name_or_path, model.tokenizer, config.dataset.dataset_name]
    if slurm.hf_home is None and any(name and not is_path(name) for name in names):
        yield (
            "slurm.hf_home is none: what ranks load from the hub goes into the container's own "
            "layer, on every node and at every start, and a read-only image has none; name a "
            "folder on shared storage"
        )
    runtime = choose_runtime(slurm, situation.runtimes)
    if runtime is not None and runtime.wraps and form_of(image) is ImageForm.REGISTRY:
        yield (
            f"slurm.container_image is a registry's name: with {runtime} every rank converts it at "
            f"every start; build it once (`{runtime} build image.sif "
            f"{normalise_image(image, pyxis=False)}`) and name that file"
        )


def _without_gpu(config: RunConfig) -> Iterator[str]:
    for name in ("dataloader", "validation_dataloader"):
        loader = getattr(config, name)
        if loader is not None and loader.pin_memory:
            yield f"{name}.pin_memory has no effect without GPUs"
    if config.distributed.backend == "nccl":
        yield "distributed.backend is nccl, but no GPUs are asked for; write auto or gloo"
    if config.model.attn_implementation == "flash_attention_2":
        yield (
            "model.attn_implementation is flash_attention_2, which needs GPUs, and none are asked "
            "for; write auto"
        )
