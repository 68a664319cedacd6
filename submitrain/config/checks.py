"""What several keys say together: contradictions, and settings that would have no effect.

Every line begins with the key it is about, so that the reader of a file can be shown its place.
Pure; imports no torch.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from submitrain.config.automodel import MODEL, NEUTRAL_DISTRIBUTED, RECIPES, STDLIB, TEXT

if TYPE_CHECKING:
    from submitrain.config.job import SlurmConfig
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

HUB_KEYS = ("revision", "name", "data_files", "data_dir")
"""Further keys of a data set that is loaded from the hub (datasets.load_dataset)."""


def problems_of(config: RunConfig) -> list[str]:
    """Contradictions, then settings without an effect, one line each."""
    if config.entry is not None:
        return [*_slurm_problems(config.slurm), *_unread_beside_entry(config)]
    return [
        *_contradictions(config),
        *_parallelism(config),
        *_slurm_problems(config.slurm),
        *_without_effect(config),
        *_unknown_to_components(config),
    ]


def _unread_beside_entry(config: RunConfig) -> Iterator[str]:
    """Settings that a training function of the user's own would not see."""
    for name in RECIPE_SECTIONS:
        if name in config.model_fields_set and getattr(config, name) is not None:
            yield (
                f"{name}: expected none beside entry, got a value: only the built-in recipe reads "
                "it; give your function what it needs as keys of entry, and remove this"
            )
    for name, fields in RECIPE_KEYS.items():
        section = getattr(config, name)
        given = [key for key in type(section).model_fields if key in section.model_fields_set]
        for key in (*(one for one in given if one in fields), *(section.model_extra or {})):
            yield (
                f"{name}.{'_target_' if key == 'target' else key}: expected none beside entry, got "
                "a value: only the built-in recipe reads it; decide it in your function, and "
                "remove this"
            )


def _contradictions(config: RunConfig) -> Iterator[str]:
    """What two keys say against each other."""
    model, steps, schedule = config.model, config.step_scheduler, config.lr_scheduler
    clip = config.clip_grad_norm.max_norm if config.clip_grad_norm else None
    clipping = config.training_optimizations.gradient_clipping
    local, warmup = "step_scheduler.local_batch_size", "step_scheduler.warmup_steps"
    for a, x, b, y in (
        ("dataloader.batch_size", config.dataloader.batch_size, local, steps.local_batch_size),
        (warmup, steps.warmup_steps, "lr_scheduler.lr_warmup_steps", schedule.lr_warmup_steps),
        ("training_optimizations.gradient_clipping", clipping, "clip_grad_norm.max_norm", clip),
    ):
        if x is not None and y is not None and x != y:
            yield f"{a}: expected the same as {b} ({y}), got {x}; they mean the same: remove one"
    try:
        config.batch()
    except ValueError as error:
        yield f"step_scheduler.global_batch_size: {error}"
    if model.pretrained_model_name_or_path and model.config:
        yield (
            "model.config: expected pretrained_model_name_or_path (load weights) or config "
            "(random weights), got both; remove one"
        )
    if steps.max_steps and config.warmup_steps > steps.max_steps:
        yield (
            f"{warmup if steps.warmup_steps else 'lr_scheduler.lr_warmup_steps'}: expected at most "
            f"step_scheduler.max_steps ({steps.max_steps}), got {config.warmup_steps}; the "
            "learning rate would never reach its peak"
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


def _parallelism(config: RunConfig) -> Iterator[str]:
    distributed, slurm, world = config.distributed, config.slurm, config.world_size
    arithmetic = f"nodes {slurm.nodes} x ntasks_per_node {slurm.ntasks_per_node}"
    for key in ("tp_size", "cp_size"):
        size = getattr(distributed, key)
        if size not in (None, 1):
            yield (
                f"distributed.{key}: expected 1 or none, got {size}; this version shards over "
                "data-parallel ranks only (FSDP2, HSDP)"
            )
    size = distributed.dp_size
    if size is not None and not slurm.nodes.fixed:
        yield (
            f"distributed.dp_size: expected none with a range of nodes ({slurm.nodes}), got "
            f"{size}; the world size is what the job gets: write none"
        )
    elif size not in (None, world):
        yield (
            f"distributed.dp_size: expected none or the world size {world} ({arithmetic}), got "
            f"{size}; write none to follow the world size"
        )
    replicas = distributed.dp_replicate_size
    for ranks in dict.fromkeys((config.min_world_size, world)):
        if replicas and ranks % replicas:
            yield (
                f"distributed.dp_replicate_size: expected a divisor of the world size {ranks} "
                f"({arithmetic}), got {replicas}"
            )
            break


def _without_effect(config: RunConfig) -> Iterator[str]:
    """Settings that this version would ignore; they are refused instead."""
    model, schedule = config.model, config.lr_scheduler
    if config.recipe and config.recipe.rpartition(".")[2] not in RECIPES:
        yield (
            f"recipe: expected one of {', '.join(sorted(RECIPES))} or none, got "
            f"{config.recipe!r}; only supervised fine-tuning is built in"
        )
    if model.torch_dtype == "float16":
        yield (
            "model.torch_dtype: expected bfloat16 or float32, got float16; float16 needs loss "
            "scaling, which is not built: use bfloat16"
        )
    if model.tokenizer and model.train_tokenizer_vocab_size:
        yield "model.train_tokenizer_vocab_size: expected this or tokenizer, got both; remove one"
    if model.revision and not (model.tokenizer or model.pretrained_model_name_or_path):
        yield "model.revision: expected a hub model or tokenizer with it, got neither; remove it"
    if config.sample is not None and config.checkpoint.save_consolidated == "never":
        yield (
            "sample: expected checkpoint.save_consolidated final or every with it, got never; the "
            "text is written by the exported model: change that, or remove this section"
        )
    if not config.use_compile and "enabled" not in config.compile.model_fields_set:
        for key, default in (("mode", "default"), ("fullgraph", False), ("dynamic", None)):
            if getattr(config.compile, key) != default:
                yield (
                    f"compile.{key}: expected compile.enabled true with it, got false; enable it "
                    "or remove this key"
                )
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
    if config.validation_dataset is None:
        if config.validation_dataloader is not None:
            yield (
                "validation_dataloader: expected a validation_dataset with it, got none; add the "
                "section or remove this one"
            )
        if config.step_scheduler.val_every_steps:
            yield (
                "step_scheduler.val_every_steps: expected a validation_dataset with it, got none; "
                "add the section or remove this key"
            )
    for key in ("min_lr", "lr_decay_steps"):
        if schedule.lr_decay_style == "constant" and getattr(schedule, key):
            yield (
                f"lr_scheduler.{key}: expected lr_decay_style linear or cosine with it, got "
                "constant; remove one of them"
            )


def _unknown_to_components(config: RunConfig) -> Iterator[str]:
    """Further keys of components that are built in, and take none or few of them."""
    for key in config.model.extra if config.model.target == MODEL else ():
        yield (
            f"model.{key}: unknown key; the built-in {MODEL} takes no such key: put settings of "
            "the architecture into model.config, or remove it"
        )
    for key, value in config.distributed.extra.items():
        if key not in NEUTRAL_DISTRIBUTED:
            yield f"distributed.{key}: unknown key; the built-in fsdp2 takes no such key: remove it"
        elif value is not None and value != NEUTRAL_DISTRIBUTED[key]:
            yield (
                f"distributed.{key}: expected {NEUTRAL_DISTRIBUTED[key]} or none, got {value}; the "
                "built-in fsdp2 has nothing else: remove it"
            )
    for name in ("dataset", "validation_dataset"):
        data = getattr(config, name)
        if data is None or data.target not in (STDLIB, TEXT):
            continue
        for key in data.extra:
            if data.target == STDLIB or key not in HUB_KEYS:
                yield (
                    f"{name}.{key}: unknown key; {data.target} takes no such key: correct its "
                    "spelling or remove it"
                )
        if data.target == STDLIB and data.dataset_name:
            yield (
                f"{name}.dataset_name: expected none with _target_ python_stdlib, got "
                f"{data.dataset_name!r}; remove one of them"
            )


_MOUNT = re.compile(r"^/[^:,\s]*:/[^:,\s]*(:(?P<flags>[a-z-]+(\+[a-z-]+)*))?$")
_MOUNT_FLAGS = frozenset({"ro", "rw"})
_PYXIS_MOUNT_FLAGS = _MOUNT_FLAGS | frozenset(
    {"private", "rprivate", "shared", "rshared", "slave", "rslave", "nosuid", "nodev", "noexec"}
)
"""enroot's, beyond ro and rw (mount(8)); Apptainer takes ro and rw only."""
_MEMORY = re.compile(r"^\d+[KMGT]?B?$", re.IGNORECASE)
_VARIABLE = re.compile(r"^[A-Za-z_][A-Za-z0-9_]*$")
_MODULE = re.compile(r"^[A-Za-z0-9_.+@][A-Za-z0-9_.+@/-]*$")
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_OWN_SRUN_OPTIONS = frozenset(
    """
    --kill-on-bad-exit -K --wait -W --overlap --nodes -N --ntasks -n --ntasks-per-node
    --nodelist -w --exclude -x --nodefile -F --job-name -J --input -i --output -o --error -e
    --export --container-image --container-mounts --container-env --container-workdir
    """.split()  # noqa: SIM905 - a list of words reads better
)
"""Options of srun on which supervision rests."""


def _slurm_problems(slurm: SlurmConfig) -> Iterator[str]:
    """What sbatch or srun would refuse or misread."""
    for key in type(slurm).model_fields:
        value = getattr(slurm, key)
        # A line break would end the #SBATCH line and start a shell command.
        if isinstance(value, str) and _CONTROL.search(value):
            yield f"slurm.{key}: expected one line of text, got {value!r}"
    for index, line in enumerate(slurm.srun_args):
        if _CONTROL.search(line):
            yield f"slurm.srun_args.{index}: expected one option of srun, got {line!r}"
        if (flag := line.partition("=")[0]) in _OWN_SRUN_OPTIONS:
            yield f"slurm.srun_args.{index}: {flag} is set by submitrain itself: remove it"
    for index, name in enumerate(slurm.modules):
        if not _MODULE.match(name):
            yield (
                f"slurm.modules.{index}: expected the name of a module, such as cuda/12.4, got "
                f"{name!r}; other commands belong in slurm.setup"
            )
    for key in ("mem", "mem_per_cpu"):
        value = getattr(slurm, key)
        if value is not None and not _MEMORY.match(value):
            yield (
                f"slurm.{key}: expected a size such as 64G, 512000M or 0 (all of the node), got "
                f"{value!r}; sbatch takes whole numbers with K, M, G or T"
            )
    if slurm.mem is not None and slurm.mem_per_cpu is not None:
        yield (
            "slurm.mem_per_cpu: expected mem (per node) or mem_per_cpu, got both; sbatch takes one "
            "of them: remove the other"
        )
    yield from _gpu_problems(slurm)
    yield from _container_problems(slurm)
    for name in slurm.env:
        if not _VARIABLE.match(name):
            yield (
                f"slurm.env.{name}: expected letters, digits and underscores as a variable's "
                f"name, got {name!r}"
            )


def _gpu_problems(slurm: SlurmConfig) -> Iterator[str]:
    gpus, ranks = slurm.gpus_per_node, slurm.ntasks_per_node
    if gpus and gpus < ranks:
        yield (
            f"slurm.gpus_per_node: expected at least ntasks_per_node ({ranks}), got {gpus}; every "
            "rank needs a GPU of its own: lower ntasks_per_node, or write 0 to train on CPUs"
        )
    in_gres = slurm.gres is not None and "gpu" in slurm.gres.split(":")[0].split(",")
    for key in ("gpus_per_node", "gpu_type"):
        if in_gres and getattr(slurm, key) is not None:
            yield (
                f"slurm.{key}: expected GPUs in gres ({slurm.gres}) or in gpus_per_node and "
                "gpu_type, got both; remove one"
            )
    if gpus == 0 and slurm.gpu_type is not None:
        yield (
            f"slurm.gpu_type: expected none with gpus_per_node 0, got {slurm.gpu_type!r}; remove "
            "one of them"
        )


def _container_problems(slurm: SlurmConfig) -> Iterator[str]:
    image, runtime, workdir = slurm.container_image, slurm.container_runtime, "container_workdir"
    apptainer = runtime in ("apptainer", "singularity")
    for index, mount in enumerate(slurm.extra_mounts):
        if problem := _mount_problem(mount, _MOUNT_FLAGS if apptainer else _PYXIS_MOUNT_FLAGS):
            yield f"slurm.extra_mounts.{index}: expected {problem}, got {mount!r}"
    if slurm.container_workdir is not None and not slurm.container_workdir.startswith("/"):
        yield (
            f"slurm.{workdir}: expected an absolute path inside, got {slurm.container_workdir!r}"
        )
    if image is None:
        for key in ("extra_mounts", workdir):
            if getattr(slurm, key):
                yield (
                    f"slurm.{key}: expected slurm.container_image with it, got none; without a "
                    "container nothing is mounted: name the image or remove this key"
                )
        if runtime not in ("auto", "bare"):
            yield (
                "slurm.container_runtime: expected slurm.container_image with it, got none; name "
                "the image or remove this key"
            )
    elif re.search(r"\s", image):
        yield f"slurm.container_image: expected a name or path without blanks, got {image!r}"
    elif runtime == "pyxis" and image.endswith(".sif"):
        yield (
            f"slurm.container_image: expected a .sqsh file or a registry's name with pyxis, got "
            f"{image!r}; a .sif is Apptainer's: write container_runtime: apptainer, or import the "
            "image with enroot"
        )
    elif apptainer and image.endswith((".sqsh", ".squashfs")):
        yield (
            f"slurm.container_image: expected a .sif file or a registry's name with {runtime}, got "
            f"{image!r}; a .sqsh is enroot's: write container_runtime: pyxis, or build a .sif "
            f"({runtime} build image.sif docker://...)"
        )
    elif apptainer and "#" in image and "@" in image.partition("#")[0]:
        yield (
            f"slurm.container_image: expected an image without a user for {runtime}, got "
            f"{image!r}; credentials come from `{runtime} registry login`"
        )


def _mount_problem(mount: str, allowed: frozenset[str]) -> str | None:
    match = _MOUNT.match(mount)
    if not match:
        return "src:dst or src:dst:ro with absolute paths"
    flags = set((match["flags"] or "rw").split("+"))
    if unknown := sorted(flags - allowed):
        return f"flags among {', '.join(sorted(allowed))} (with +), not {', '.join(unknown)}"
    return "ro or rw, not both" if flags >= _MOUNT_FLAGS else None
