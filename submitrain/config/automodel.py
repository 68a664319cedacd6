"""NeMo AutoModel's spellings: its names, its sections, and what it has that we have not.

That family moved its modules more than once, so of a path in its package only the class and method
count. It moved settings into sections of their own, too (``rng``, ``dist_env``, ``loss_fn``):
``translate`` rewrites those before aliases and checks, each with a word on what became of it. What
is not known stays as it was written, and is refused as an unknown key. Pure; imports no torch.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from submitrain.config.document import Document, KeyPath, Mark, dotted

MODEL = "hf_causal_lm"
DISTRIBUTED = "fsdp2"
TEXT = "text_instruction"
STDLIB = "python_stdlib"
LOADER = "torchdata.stateful_dataloader.StatefulDataLoader"
LORA = "lora"
RECIPES = frozenset(
    {"TrainFinetuneRecipeForNextTokenPrediction", "FinetuneRecipeForNextTokenPrediction"}
    | {"llm_finetune", "finetune", "sft"}
)
"""Names of the one built-in recipe; of an import path the last part counts."""
_PACKAGE = "nemo_automodel."


def _spelling(
    builtin: str, *classes: str, packages: tuple[str, ...] = (_PACKAGE,)
) -> Callable[[object], object]:
    """A function that puts our name in place of that family's import paths for the same thing."""
    endings = tuple(f".{name}" for name in classes)

    def ours(value: object) -> object:
        family = isinstance(value, str) and value.startswith(packages) and value.endswith(endings)
        return builtin if family else value

    return ours


model_target = _spelling(
    MODEL,
    *(
        f"{name}{method}"
        for name in ("NeMoAutoModelForCausalLM", "AutoModelForCausalLM")
        for method in ("", ".from_pretrained", ".from_config")
    ),
    packages=(_PACKAGE, "transformers."),
)
distributed_target = _spelling(
    DISTRIBUTED, "NVFSDPManager", "FSDP2Manager", "MegatronFSDPManager", "nvFSDPManager"
)
dataset_target = _spelling(
    TEXT, "TextInstructionDataset", "ColumnMappedTextInstructionDataset", "ChatDataset"
)
loader_target = _spelling(LOADER, "StatefulDataLoader", packages=("torchdata.",))
peft_target = _spelling(LORA, "PeftConfig")

TARGETS: dict[KeyPath, Callable[[object], object]] = {
    ("model", "_target_"): model_target,
    ("distributed", "_target_"): distributed_target,
    ("dataset", "_target_"): dataset_target,
    ("validation_dataset", "_target_"): dataset_target,
    ("dataloader", "_target_"): loader_target,
    ("validation_dataloader", "_target_"): loader_target,
    ("peft", "_target_"): peft_target,
}
"""What rewrites a component's name, by its key."""

NEUTRAL: dict[KeyPath, tuple[tuple[Any, ...], str]] = {
    ("distributed", "dp_size"): ((None, "none"), "the world size, as always"),
    ("distributed", "dp_replicate_size"): ((None, "none", 1), "one copy of the model, as always"),
    **{
        ("distributed", key): ((None, "none", 1, False), "asks for nothing")
        for key in ("tp_size", "cp_size", "pp_size", "ep_size", "sequence_parallel")
    },
    ("distributed", "use_hf_tp_plan"): ((None, "none", False), "asks for nothing"),
}
"""Values that ask for what is done anyway, and why."""
NEUTRAL_DISTRIBUTED: dict[str, Any] = {
    "pp_size": 1, "ep_size": 1, "sequence_parallel": False, "use_hf_tp_plan": False,
}  # fmt: skip
"""Keys of that family's managers that our section does not have, with what they may say."""


@dataclass(frozen=True)
class Moved:
    """What became of a key: our key for it, or why it asks for nothing."""

    to: KeyPath | None
    why: str = ""


@dataclass
class Translation:
    """A document in our sections, and what became of the keys that were moved or left out."""

    document: Document
    moved: dict[KeyPath, Moved] = field(default_factory=dict)

    def drop(self, path: KeyPath, what: Moved) -> None:
        """Take a key away, and note what became of it."""
        tree: Any = self.document.tree
        for part in path[:-1]:
            tree = tree[part]
        del tree[path[-1]]
        self.moved[path] = what


def translate(document: Document) -> Translation:
    """``document`` with that family's own sections rewritten; the same one where it has none."""
    work = Translation(replace(document, tree=copy.deepcopy(document.tree)))
    tree = work.document.tree
    for path, rule in _RULES.items():
        section = tree.get(str(path[0]))
        if len(path) == 1 and path[0] in tree:
            rule(work, path, section)
        elif isinstance(section, dict) and path[1] in section:
            rule(work, path, section[path[1]])
    for name in ("rng", "dist_env"):
        if tree.get(name) == {}:
            del tree[name]
    return work if work.moved else Translation(document)


_Rule = Callable[[Translation, KeyPath, Any], None]


def _move(to: KeyPath, change: Callable[[Any], Any] = lambda value: value) -> _Rule:
    """A rule: the value belongs at ``to``, unless that is given, too."""

    def rule(work: Translation, path: KeyPath, value: Any) -> None:
        tree = work.document.tree
        home = tree if len(to) == 1 else tree.setdefault(str(to[0]), {})
        if not isinstance(home, dict) or to[-1] in home or value is None:
            return
        home[str(to[-1])] = change(value)
        mark = work.document.mark(path)
        work.drop(path, Moved(to))
        moved = Mark(mark.where, mark.text, spelled=dotted(path))
        work.document = replace(work.document, marks={**work.document.marks, to: moved})

    return rule


def _neutral(fits: Callable[[Any], bool], why: str) -> _Rule:
    """A rule: a value that fits asks for what is done anyway."""

    def rule(work: Translation, path: KeyPath, value: Any) -> None:
        if fits(value):
            work.drop(path, Moved(None, why))

    return rule


def _unless_parallel(size: str, why: str) -> _Rule:
    """A rule: settings of a kind of parallelism that is not asked for."""

    def rule(work: Translation, path: KeyPath, value: Any) -> None:
        if work.document.tree[str(path[0])].get(size) in (None, "none", 1):
            work.drop(path, Moved(None, why))

    return rule


def _tokenizer(work: Translation, path: KeyPath, value: Any) -> None:
    """A rule: a tokenizer by its name alone belongs to the model."""
    name = value.get("pretrained_model_name_or_path") if isinstance(value, dict) else None
    if isinstance(name, str) and set(value) <= {"_target_", "pretrained_model_name_or_path"}:
        _move(("model", "tokenizer"), lambda _: name)(work, path, value)


def _of_text(work: Translation, path: KeyPath, value: Any) -> None:
    """A rule: how samples of instruction data get their length."""
    section = work.document.tree[str(path[0])]
    if dataset_target(section.get("_target_", TEXT)) == TEXT:
        why = "samples are cut at max_length and packed, or padded to the longest of a batch"
        work.drop(path, Moved(None, why))


def _squad(work: Translation, path: KeyPath, value: Any) -> None:
    """A rule: their reader of SQuAD is our reader with the right columns."""
    section = work.document.tree[str(path[0])]
    if _names("make_squad_dataset")(value) and "column_mapping" not in section:
        columns = {"question": "question", "context": "context", "answer": "answers.text.0"}
        section |= {"_target_": TEXT, "column_mapping": columns}
        why = f"built in: {TEXT} with column_mapping; the prompt's wording is ours"
        work.moved[path] = Moved(path, why)


def _names(*classes: str) -> Callable[[Any], bool]:
    """Whether a component, given by its path or as a mapping, is one of that family's."""

    def fits(value: Any) -> bool:
        path = value.get("_target_") if isinstance(value, dict) else value
        if not isinstance(path, str) or not path.startswith(_PACKAGE):
            return False
        return path.rpartition(".")[2] in classes

    return fits


def _seconds(minutes: Any) -> Any:
    number = isinstance(minutes, int | float) and not isinstance(minutes, bool)
    return round(60 * minutes) if number else minutes


_COLLATED = _neutral(
    _names("default_collater", "packed_sequence_thd_collater"),
    "the built-in data set brings its own collation",
)
_RULES: dict[KeyPath, _Rule] = {
    ("rng", "seed"): _move(("seed",)),
    ("rng", "_target_"): _neutral(
        _names("StatefulRNG"), "random numbers are a function of seed, step and rank here"
    ),
    ("rng", "ranked"): _neutral(
        lambda value: value is True, "every rank has random numbers of its own here"
    ),
    ("dist_env", "backend"): _move(("distributed", "backend")),
    ("dist_env", "timeout_minutes"): _move(("distributed", "timeout_s"), _seconds),
    ("loss_fn",): _neutral(
        _names(
            *("MaskedCrossEntropy", "ChunkedCrossEntropy", "FusedLinearCrossEntropy"),
            "TEParallelCrossEntropy",
        ),
        "the loss is the mean cross-entropy over all label tokens anyway",
    ),
    ("dataloader", "collate_fn"): _COLLATED,
    ("validation_dataloader", "collate_fn"): _COLLATED,
    ("tokenizer",): _tokenizer,
    ("dataset", "_target_"): _squad,
    ("validation_dataset", "_target_"): _squad,
    **{
        (name, key): _of_text
        for name in ("dataset", "validation_dataset")
        for key in ("padding", "truncation", "pad_to_max_length")
    },
    ("distributed", "strategy"): _neutral(
        lambda value: value in ("fsdp2", "nvfsdp", "megatron_fsdp"),
        "the built-in fsdp2 shards the same way",
    ),
    ("distributed", "pipeline"): _unless_parallel("pp_size", "there is no pipeline"),
    ("distributed", "moe"): _unless_parallel("ep_size", "there is no expert parallelism"),
    ("distributed", "activation_checkpointing"): _move(
        ("training_optimizations", "activation_checkpointing")
    ),
    ("distributed", "defer_fsdp_grad_sync"): _move(("distributed", "defer_grad_sync")),
    ("wandb", "enable"): _move(("wandb", "enabled")),
    ("peft", "use_triton"): _neutral(
        lambda value: isinstance(value, bool), "adapters are computed by torch: the same numbers"
    ),
    ("step_scheduler", "gc_every_steps"): _neutral(
        lambda value: True, "Python's own garbage collection does"
    ),
    ("compile", "backend"): _neutral(
        lambda value: value in (None, "inductor"), "torch.compile's default"
    ),
    ("ci",): _neutral(lambda value: True, "about that project's own tests"),
}

_LATER = "not in this version; remove it"

REFUSED: dict[KeyPath, str] = {
    ("hooks",): "write the top-level on_success and on_failure",
    ("sweep",): "how runs vary is no part of one: use `python -m launcher sweep`; remove it",
    ("price",): _LATER,
    ("arrays",): _LATER,
    ("slurm", "preflight"): "write the top-level preflight: off, quick or full",
    ("slurm", "price"): _LATER,
    ("slurm", "array"): (
        "one launch is one job, which requeues itself; for many runs use a sweep; remove it"
    ),
    ("slurm", "array_parallelism"): _LATER,
    ("slurm", "master_port"): (
        "ranks find each other through the run folder, on a free port; remove it"
    ),
    ("slurm", "command"): "submitrain writes the command itself; remove it",
    ("slurm", "job_dir"): "run folders are made in the top-level runs_dir: write that",
    ("slurm", "env_vars"): "write slurm.env",
    ("slurm", "gpus"): "write slurm.gpus_per_node",
    ("slurm", "gpus_per_task"): (
        "write slurm.gpus_per_node: binding GPUs to tasks breaks NCCL's peer access"
    ),
    **{
        (loader, "collate_fn"): "the built-in data set brings its own collation; remove it"
        for loader in ("dataloader", "validation_dataloader")
    },
    ("peft", "exclude_modules"): "name the adapted modules in target_modules",
    ("rng",): "write the top-level seed",
    ("loss_fn",): "the loss is the mean cross-entropy over all label tokens; remove it",
    ("dist_env",): "write distributed.backend and distributed.timeout_s",
}
"""Keys that are known and refused: what to write instead, or that a later version takes them."""
