"""Reads a configuration for a launch: a file or Python, overrides, checks, the text to keep.

Precedence: the file, then keyword changes, then ``a.b=c`` overrides. Imports no torch.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.config.automodel import MODEL, STDLIB, TEXT
from submitrain.config.document import Document, KeyPath, dotted, dump_yaml, read_document
from submitrain.config.placeholders import WANDB, looks_secret, names_secret, placeholder_names
from submitrain.config.resolve import Problems, Resolved, in_our_spelling, resolve, written_tree
from submitrain.config.schema import ENVIRONMENT_ONLY, VERBATIM
from submitrain.launcher.plan.overrides import apply_changes, apply_overrides, plain_tree
from submitrain.launcher.plan.sbatch import additional_problems
from submitrain.launcher.plan.targets import check_targets
from submitrain.launcher.plan.watcher import watcher_problems
from submitrain.run_folder import RunDir

HEADER = (
    "# The complete configuration of this run, written by submitrain.\n"
    "# ${VAR} is read from the environment where the run executes; values are never kept here.\n"
)
PLACE_KEYS = ("name", "runs_dir", "cluster", "after", "alerts", "monitor")
"""Top-level keys that say where and when a run is and who watches it: no part of the digest."""


@dataclass(frozen=True)
class LoadedConfig:
    """A checked configuration and the text that the run folder keeps.

    ``text`` holds every key, defaults included, in our spelling and with placeholders; it loads
    back to an equal ``config``. ``digest`` is the sha256 of its canonical form without
    ``PLACE_KEYS``: equal digests mean the same run, wherever it is started.
    """

    config: RunConfig
    text: str
    digest: str
    path: Path | None
    name: str
    model_config: Mapping[str, Any] | None = None
    """The model's Hugging Face config, inline or of a local folder; None where it is not known."""
    notes: tuple[str, ...] = ()
    """What could not be checked on this machine."""
    warnings: tuple[str, ...] = ()
    """What was changed so that it fits."""


def load_config(
    source: str | Path | Mapping[str, Any] | object,
    overrides: Sequence[str] = (),
    changes: Mapping[str, Any] | None = None,
    *,
    environ: Mapping[str, str] | None = None,
) -> LoadedConfig:
    """Load and check a configuration; nothing is submitted, imported or downloaded.

    Args:
        source: path of a YAML file, a mapping, a RunConfig or a dataclass of the same shape.
        overrides: ``a.b=c`` strings; the value is YAML, nothing after ``=`` means none.
        changes: the same from Python: nested mappings, ``a__b`` or ``a.b`` keys.
        environ: where placeholders are looked up; default: this process's environment.

    Raises:
        ConfigError: every problem, one line each, with its file and line.
    """
    environ = os.environ if environ is None else environ
    written, path = read_source(source)
    document = apply_overrides(apply_changes(written, changes or {}), overrides)
    document, warnings = _with_fitting_warmup(document, written)
    refuse_secrets(document)
    resolved = resolve(document, environ)
    notes: tuple[str, ...] = ()
    # A run folder's own configuration was checked at launch, in the folder it started from.
    if path is None or path.name != "config.yaml" or not RunDir(path.parent).record.exists():
        problems, notes = unsuitable(resolved)
        problems.raise_any()
    config = resolved.config
    name = config.name or config.slurm.job_name or (path.stem if path else "")
    if not name and config.entry:  # train-main for my_package.train.main
        name = "-".join(config.entry.target.split(".")[-2:])
    # What a file or job is called may not be fit for a folder.
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64] or "run"
    config = config.model_copy(update={"name": name})
    tree = written_tree(replace(resolved, config=config))
    return LoadedConfig(
        config=config,
        text=HEADER + dump_yaml(tree),
        digest=digest_of(tree),
        path=path,
        name=name,
        model_config=_known_model_config(config),
        notes=notes,
        warnings=warnings,
    )


def _with_fitting_warmup(document: Document, written: Document) -> tuple[Document, tuple[str, ...]]:
    """``document`` with a file's warm-up shortened where an override made the run shorter than it.

    ``python -m launcher quickstart.yaml step_scheduler.max_steps=6`` is what people try first. A
    warm-up that somebody overrode, too, is left alone, and refused where it does not fit.
    """
    limit = ("step_scheduler", "max_steps")
    steps, before = document.get(limit), written.get(limit)
    if (
        not isinstance(steps, int)
        or steps < 1
        or document.marks.get(limit) == written.marks.get(limit)
    ):
        return document, ()
    warnings = []
    for path in (("step_scheduler", "warmup_steps"), ("lr_scheduler", "lr_warmup_steps")):
        warmup, mark = document.get(path), document.marks.get(path)
        if not isinstance(warmup, int) or warmup <= steps or mark != written.marks.get(path):
            continue
        share = warmup / before if isinstance(before, int) and before > warmup else 0.1
        shorter = max(1, round(steps * share))
        section = {**document.tree[path[0]], path[1]: shorter}
        document = replace(document, tree={**document.tree, path[0]: section})
        warnings.append(
            f"{dotted(path)} is {warmup}{f' ({mark.where})' if mark else ''}, longer than the run "
            f"of max_steps {steps}: shortened to {shorter}; override it, too, to choose another one"
        )
    return document, tuple(warnings)


def unsuitable(resolved: Resolved) -> tuple[Problems, tuple[str, ...]]:
    """What only the launcher can judge, and what could not be checked on this machine."""
    config, problems = resolved.config, Problems(resolved.document)
    problems.add_lines(incomplete(config))
    problems.add_lines(additional_problems(config.slurm))
    problems.add_lines(watcher_problems(config))
    if str(resolved.document.get(("model", "_target_"))).endswith(".from_config"):
        problems.add_lines(_from_config(config))
    if problems.found:
        return problems, ()
    report = check_targets(config)
    problems.add_lines(report.problems)
    return problems, report.notes


def incomplete(config: RunConfig) -> Iterator[str]:
    """What a run cannot do without, one line each."""
    if config.entry is not None:
        return
    model = config.model
    if model.target == MODEL and not (model.pretrained_model_name_or_path or model.config):
        yield (
            "model: expected pretrained_model_name_or_path (a hub name or folder) or config "
            "(model_type and sizes, random weights), got neither"
        )
    has_tokenizer = model.tokenizer or model.train_tokenizer_vocab_size
    if not has_tokenizer and not model.pretrained_model_name_or_path:
        yield (
            "model.tokenizer: expected tokenizer (a hub name or folder) or "
            "train_tokenizer_vocab_size for a model without pretrained_model_name_or_path, got "
            "neither"
        )
    for name in ("dataset", "validation_dataset"):
        data = getattr(config, name)
        if data is not None and data.target == TEXT and not data.dataset_name:
            yield (
                f"{name}.dataset_name: expected a hub name (tatsu-lab/alpaca) or a path of "
                f"JSONL/Parquet data, got none; or write _target_: {STDLIB} for built-in text"
            )


def _from_config(config: RunConfig) -> Iterator[str]:
    if config.model.pretrained_model_name_or_path:
        yield (
            "model.pretrained_model_name_or_path: expected model.config with from_config (random "
            "weights), got a model whose weights would be loaded; write from_pretrained, or the "
            "sizes in model.config"
        )
    elif "_target_" in (config.model.config or {}):
        yield (
            "model.config: expected model_type and sizes, got a _target_; write the Hugging Face "
            "config's values here"
        )


def _known_model_config(config: RunConfig) -> dict[str, Any] | None:
    """The Hugging Face config where it can be read without network: inline or in a local folder."""
    if config.model.config is not None:
        return config.model.config
    name = config.model.pretrained_model_name_or_path
    if name is None:
        return None
    try:
        value = json.loads((Path(name).expanduser() / "config.json").read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def digest_of(tree: Mapping[str, Any]) -> str:
    """sha256 (hex) of a written tree's canonical JSON, without ``PLACE_KEYS``."""
    kept = {key: value for key, value in tree.items() if key not in PLACE_KEYS}
    canonical = json.dumps(kept, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_source(source: str | Path | Mapping[str, Any] | object) -> tuple[Document, Path | None]:
    """What was written, and the file that it stands in.

    Raises:
        ConfigError: no such file, or nothing that could be a configuration.
    """
    if isinstance(source, str | Path):
        path = Path(source).expanduser()
        return read_document(path), path
    return Document("given from Python", plain_tree(source)), None


def refuse_secrets(document: Document) -> None:
    """Refuse literal secrets anywhere, and secret variables in what ends in the sbatch text.

    Raises:
        ConfigError: one line for each, without the value.
    """
    document, _ = in_our_spelling(document)
    problems = Problems(document)
    for path, text in _texts(document.tree, ()):
        if problem := _literal(path, text) or _in_sbatch(path, text):
            problems.add(path, problem)
    problems.raise_any()


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield from _texts(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value):
            yield from _texts(item, (*path, index))
    elif isinstance(value, str):
        yield path, value


def _literal(path: KeyPath, text: str) -> str | None:
    kind = looks_secret(text)
    if kind == WANDB and "revision" in str(path[-1]):
        return None
    if kind is None and path[:2] == ("slurm", "env") and len(path) > 2:
        named = names_secret(str(path[2])) and text and not placeholder_names(text)
        kind = f"the value of {path[2]}" if named else None
    if kind is None:
        return None
    return (
        f"expected a placeholder such as ${{HF_TOKEN}}, got {kind} (not shown); export it as an "
        "environment variable, name that here, and revoke the value if this file was shared"
    )


def _in_sbatch(path: KeyPath, text: str) -> str | None:
    if path[0] != "slurm" or path[:2] in ENVIRONMENT_ONLY or path[:2] in VERBATIM:
        return None
    named = [name for name in placeholder_names(text) if names_secret(name)]
    if not named:
        return None
    return (
        f"expected nothing secret, got ${{{named[0]}}}; this key ends in the sbatch text, which "
        f"others can read: pass it as slurm.env.{named[0]}: ${{{named[0]}}}"
    )
