"""What several keys say together: contradictions, and settings that would have no effect.

Every line begins with the key it is about, so that the reader of a file can be shown its place.
Pure; imports no torch.

What a configuration with an ``entry`` may say: the built-in recipe's settings are refused.

Pure; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from submitrain.config.automodel import MODEL, STDLIB, TEXT
from submitrain.config.slurm_checks import job_problems

if TYPE_CHECKING:
    from submitrain.config.run import RunConfig


RECIPE_SECTIONS = (
    "recipe", "model", "dataset", "validation_dataset", "packed_sequence", "step_scheduler",
    "dataloader", "validation_dataloader", "optimizer", "lr_scheduler", "peft",
    "training_optimizations", "clip_grad_norm", "compile", "sample",
)  # fmt: skip
"""Sections that only the built-in recipe reads."""

RECIPE_KEYS = {
    "distributed": frozenset(
        {"target", "dp_size", "dp_replicate_size", "tp_size", "cp_size"}
        | {"reshard_after_forward", "defer_grad_sync"}
    ),
    "checkpoint": frozenset({"model_save_format", "save_consolidated", "async_save"}),
    "logging": frozenset({"log_sample_ids"}),
    "resilience": frozenset(
        {"max_skipped_steps", "max_rollbacks", "loss_spike", "loss_spike_z", "loss_spike_steps"}
        | {"anomaly_window_steps", "mttf"}
    ),
}
"""Of sections that both read, the fields that only the built-in recipe reads."""


def entry_problems(config: RunConfig) -> Iterator[str]:
    """Settings that a training function of the user's own would not see, one line each."""
    for name in RECIPE_SECTIONS:
        if name in config.model_fields_set and getattr(config, name) is not None:
            yield (
                f"{name}: expected none beside entry, got a value: only the built-in recipe reads "
                "it; give your function what it needs as keys of entry, and remove this"
            )
    for name, fields in RECIPE_KEYS.items():
        section = getattr(config, name)
        given = [one for one in type(section).model_fields if one in section.model_fields_set]
        for key in (*(one for one in given if one in fields), *(section.model_extra or {})):
            written = "_target_" if key == "target" else key
            yield (
                f"{name}.{written}: expected none beside entry, got a value: only the built-in "
                "recipe reads it; decide it in your function, and remove this"
            )


RECIPES = frozenset(
    {
        "TrainFinetuneRecipeForNextTokenPrediction",
        "FinetuneRecipeForNextTokenPrediction",
        "llm_finetune",
        "finetune",
        "sft",
    }
)
"""Names of the one built-in recipe; of an import path the last part counts."""

HUB_KEYS = ("revision", "name", "data_files", "data_dir")
"""Further keys of a data set that is loaded from the hub (datasets.load_dataset)."""

NEUTRAL_DISTRIBUTED: dict[str, Any] = {
    "pp_size": 1,
    "ep_size": 1,
    "sequence_parallel": False,
    "use_hf_tp_plan": False,
}
"""Keys of that family's managers which ask for nothing at these values."""


def problems_of(config: RunConfig) -> list[str]:
    """Contradictions, then settings without an effect, one line each."""
    if config.entry is not None:
        return [*job_problems(config.slurm), *entry_problems(config)]
    return [*contradictions(config), *job_problems(config.slurm), *without_effect(config)]


def contradictions(config: RunConfig) -> Iterator[str]:
    """What two keys say against each other."""
    yield from _said_twice(config)
    yield from _batch(config)
    yield from _parallelism(config)
    model, steps = config.model, config.step_scheduler
    if model.pretrained_model_name_or_path and model.config:
        yield (
            "model.config: expected pretrained_model_name_or_path (load weights) or config "
            "(random weights), got both; remove one"
        )
    if steps.max_steps and config.warmup_steps > steps.max_steps:
        key = (
            "step_scheduler.warmup_steps" if steps.warmup_steps else "lr_scheduler.lr_warmup_steps"
        )
        yield (
            f"{key}: expected at most step_scheduler.max_steps ({steps.max_steps}), got "
            f"{config.warmup_steps}; the learning rate would never reach its peak"
        )
    if config.peft and config.peft.match_all_linear is not None:
        all_linear = config.peft.target_modules == "all-linear"
        if config.peft.match_all_linear != all_linear:
            yield (
                f"peft.match_all_linear: expected {str(all_linear).lower()} with target_modules "
                f"{config.peft.target_modules}, got {str(not all_linear).lower()}; remove one"
            )
    if config.packs and config.sequence_length < config.dataset.max_length:
        yield (
            "packed_sequence.packed_sequence_size: expected at least dataset.max_length "
            f"({config.dataset.max_length}), got {config.sequence_length}; lower "
            "dataset.max_length (longer samples are cut) or raise this"
        )


def _said_twice(config: RunConfig) -> Iterator[str]:
    steps, clip = config.step_scheduler, config.clip_grad_norm
    pairs: list[tuple[str, Any, str, Any]] = [
        (
            "dataloader.batch_size",
            config.dataloader.batch_size,
            "step_scheduler.local_batch_size",
            steps.local_batch_size,
        ),
        (
            "step_scheduler.warmup_steps",
            steps.warmup_steps,
            "lr_scheduler.lr_warmup_steps",
            config.lr_scheduler.lr_warmup_steps,
        ),
        (
            "training_optimizations.gradient_clipping",
            config.training_optimizations.gradient_clipping,
            "clip_grad_norm.max_norm",
            clip.max_norm if clip else None,
        ),
    ]
    for a, x, b, y in pairs:
        if x is not None and y is not None and x != y:
            yield f"{a}: expected the same as {b} ({y}), got {x}; they mean the same: remove one"


def _batch(config: RunConfig) -> Iterator[str]:
    try:
        config.batch()
    except ValueError as error:
        yield f"step_scheduler.global_batch_size: {error}"


def _parallelism(config: RunConfig) -> Iterator[str]:
    distributed, world = config.distributed, config.world_size
    arithmetic = f"nodes {config.slurm.nodes} x ntasks_per_node {config.slurm.ntasks_per_node}"
    for key in ("tp_size", "cp_size"):
        size = getattr(distributed, key)
        if size not in (None, 1):
            yield (
                f"distributed.{key}: expected 1 or none, got {size}; this version shards over "
                "data-parallel ranks only (FSDP2, HSDP)"
            )
    if distributed.dp_size is not None and not config.slurm.nodes.fixed:
        yield (
            f"distributed.dp_size: expected none with a range of nodes ({config.slurm.nodes}), got "
            f"{distributed.dp_size}; the world size is what the job gets: write none"
        )
    elif distributed.dp_size not in (None, world):
        yield (
            f"distributed.dp_size: expected none or the world size {world} ({arithmetic}), got "
            f"{distributed.dp_size}; write none to follow the world size"
        )
    replicas = distributed.dp_replicate_size
    worlds = (config.min_world_size, world)
    odd = next((size for size in worlds if replicas and size % replicas), None)
    if odd is not None:
        yield (
            f"distributed.dp_replicate_size: expected a divisor of the world size {odd} "
            f"({arithmetic}), got {replicas}"
        )


def without_effect(config: RunConfig) -> Iterator[str]:
    """Settings that this version would ignore; they are refused instead."""
    if config.recipe and config.recipe.rpartition(".")[2] not in RECIPES:
        yield (
            f"recipe: expected one of {', '.join(sorted(RECIPES))} or none, got "
            f"{config.recipe!r}; only supervised fine-tuning is built in"
        )
    yield from _model(config)
    yield from _component_extras(config)
    yield from _outputs(config)
    yield from _loading(config)
    yield from _data(config)
    yield from _schedule(config)


def _model(config: RunConfig) -> Iterator[str]:
    model = config.model
    if model.torch_dtype == "float16":
        yield (
            "model.torch_dtype: expected bfloat16 or float32, got float16; float16 needs loss "
            "scaling, which is not built: use bfloat16"
        )
    if model.tokenizer and model.train_tokenizer_vocab_size:
        yield ("model.train_tokenizer_vocab_size: expected this or tokenizer, got both; remove one")
    if model.revision and not (model.tokenizer or model.pretrained_model_name_or_path):
        yield "model.revision: expected a hub model or tokenizer with it, got neither; remove it"


def _outputs(config: RunConfig) -> Iterator[str]:
    if config.sample is not None and config.checkpoint.save_consolidated == "never":
        yield (
            "sample: expected checkpoint.save_consolidated final or every with it, got never; the "
            "text is written by the exported model: change that, or remove this section"
        )
    switched_off = "enabled" in config.compile.model_fields_set
    if not config.use_compile and not switched_off:
        for key, default in (("mode", "default"), ("fullgraph", False), ("dynamic", None)):
            if getattr(config.compile, key) != default:
                yield (
                    f"compile.{key}: expected compile.enabled true with it, got false; enable it "
                    "or remove this key"
                )


def _component_extras(config: RunConfig) -> Iterator[str]:
    if config.model.target == MODEL:
        for key in config.model.extra:
            yield (
                f"model.{key}: unknown key; the built-in {MODEL} takes no such key: put settings "
                "of the architecture into model.config, or remove it"
            )
    for key, value in config.distributed.extra.items():
        if key not in NEUTRAL_DISTRIBUTED:
            yield f"distributed.{key}: unknown key; the built-in fsdp2 takes no such key: remove it"
        elif value is not None and value != NEUTRAL_DISTRIBUTED[key]:
            yield (
                f"distributed.{key}: expected {NEUTRAL_DISTRIBUTED[key]} or none, got {value}; the "
                "built-in fsdp2 has nothing else: remove it"
            )


def _loading(config: RunConfig) -> Iterator[str]:
    for name in ("dataloader", "validation_dataloader"):
        loader = getattr(config, name)
        if loader is None:
            continue
        if loader.drop_last:
            yield (
                f"{name}.drop_last: expected false, got true; every sample is used, and a short "
                "last step is weighted by its tokens: remove the key"
            )
        for key in ("persistent_workers", "prefetch_factor"):
            if getattr(loader, key) and not loader.num_workers:
                yield (
                    f"{name}.{key}: expected num_workers > 0 with it, got num_workers 0; set "
                    f"{name}.num_workers or remove the key"
                )
    if config.validation_dataloader is not None and config.validation_dataset is None:
        yield (
            "validation_dataloader: expected a validation_dataset with it, got none; add the "
            "section or remove this one"
        )


def _data(config: RunConfig) -> Iterator[str]:
    for name in ("dataset", "validation_dataset"):
        data = getattr(config, name)
        if data is not None and data.target in (STDLIB, TEXT):
            for key in data.extra:
                if data.target == STDLIB or key not in HUB_KEYS:
                    yield (
                        f"{name}.{key}: unknown key; {data.target} takes no such key: correct its "
                        "spelling or remove it"
                    )
        if data is not None and data.target == STDLIB and data.dataset_name:
            yield (
                f"{name}.dataset_name: expected none with _target_ python_stdlib, got "
                f"{data.dataset_name!r}; remove one of them"
            )
    if config.step_scheduler.val_every_steps and config.validation_dataset is None:
        yield (
            "step_scheduler.val_every_steps: expected a validation_dataset with it, got none; add "
            "the section or remove this key"
        )


def _schedule(config: RunConfig) -> Iterator[str]:
    schedule = config.lr_scheduler
    if schedule.lr_decay_style != "constant":
        return
    for key in ("min_lr", "lr_decay_steps"):
        if getattr(schedule, key):
            yield (
                f"lr_scheduler.{key}: expected lr_decay_style linear or cosine with it, got "
                "constant; remove one of them"
            )
