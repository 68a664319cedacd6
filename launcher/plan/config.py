"""Read a configuration for a launch: a YAML file or Python, overrides, checks, the text to keep.

Precedence: the file, then keyword changes, then ``a.b=c`` overrides. Imports no torch.

Training functions as Python objects: ``launch(fn)`` and ``launch(cfg, entry=fn)``.

Ranks import the function by its path, in processes of their own and on other machines, so only one
that lies in a module can be launched. Nothing is pickled. Pure; imports no torch.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.config.automodel import MODEL, STDLIB, TEXT
from submitrain.config.document import Document, dump_yaml, read_document
from submitrain.config.resolve import Problems, Resolved, resolve, written_tree
from submitrain.errors import ConfigError
from submitrain.launcher.plan.inputs import refuse_secrets
from submitrain.launcher.plan.overrides import apply_changes, apply_overrides, plain_tree
from submitrain.launcher.plan.sbatch import additional_problems
from submitrain.launcher.plan.targets import check_targets
from submitrain.launcher.plan.watcher import watcher_problems
from submitrain.run_folder import RunDir

Source = str | Path | Mapping[str, Any] | object


def as_config(
    source: Source | Callable[..., object], changes: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """``source`` and ``changes`` with every function replaced by an ``entry`` that names it.

    Raises:
        ConfigError: a function that ranks cannot import, with the way out.
    """
    changes = dict(changes)
    if _is_function(changes.get("entry")):
        changes["entry"] = {"_target_": import_path(changes["entry"])}
    if _is_function(source):
        source = {"entry": {"_target_": import_path(source)}}
    elif isinstance(source, Mapping) and _is_function(source.get("entry")):
        source = {**source, "entry": {"_target_": import_path(source["entry"])}}
    return source, changes


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def import_path(function: Any) -> str:
    """``my_package.training.main``, by which ranks import ``function``.

    Raises:
        ConfigError: it has no such path: a lambda, a method, a nested function, one of a notebook
            or of the script that is running.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not inspect.isfunction(function) or not module or not name:
        raise ConfigError(
            f"entry: expected a plain function, got {function!r}; ranks import it by its path: "
            "write a function in a module, and give it what it needs as keys of entry"
        )
    if module == "__main__":
        raise ConfigError(f"entry: {_out_of_main(name)}")
    if "<" in name or "." in name:
        raise ConfigError(
            f"entry: expected a function at the top level of a module, got {module}.{name}; ranks "
            "import it by its path: move it out of the function or class around it"
        )
    return f"{module}.{name}"


def _out_of_main(name: str) -> str:
    """The way out for a function of a notebook, of a prompt or of the running script."""
    what = name if name.isidentifier() else "it"
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        return (
            f"expected a function of a module, got {name} of this notebook or prompt, which ranks "
            "cannot import; begin its cell with `%%writefile my_training.py`, run it, then "
            f"`from my_training import {what}` and launch that"
        )
    stem = Path(file).stem
    return (
        f"expected a function of a module, got {name} of the script that is running ({file}), "
        f"which ranks would run again to import it; move {what} into a module beside it, such as "
        f"{stem}_training.py, and launch that"
    )


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
    document, path = read_source(source)
    document = apply_changes(document, changes or {})
    document = apply_overrides(document, overrides)
    refuse_secrets(document)
    resolved = resolve(document, environ)
    notes = () if _was_launched(path) else _refuse_unsuitable(resolved)
    name = _name(resolved.config, path)
    resolved = replace(resolved, config=resolved.config.model_copy(update={"name": name}))
    tree = written_tree(resolved)
    return LoadedConfig(
        config=resolved.config,
        text=HEADER + dump_yaml(tree),
        digest=digest_of(tree),
        path=path,
        name=name,
        model_config=known_model_config(resolved.config),
        notes=notes,
    )


def _refuse_unsuitable(resolved: Resolved) -> tuple[str, ...]:
    """Raise for what only the launcher can judge: completeness, sbatch's options, components."""
    problems, notes = unsuitable(resolved)
    problems.raise_any()
    return notes


def unsuitable(resolved: Resolved) -> tuple[Problems, tuple[str, ...]]:
    """What only the launcher can judge, and what could not be checked on this machine."""
    config, problems = resolved.config, Problems(resolved.document)
    problems.add_lines(incomplete(config))
    problems.add_lines(additional_problems(config.slurm))
    problems.add_lines(watcher_problems(config))
    if _written(resolved, "model._target_").endswith(".from_config"):
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


def _written(resolved: Resolved, key: str) -> str:
    return str(resolved.document.get(tuple(key.split("."))) or "")


def _was_launched(path: Path | None) -> bool:
    """A run folder's own configuration was checked at launch, in the folder it started from."""
    return path is not None and path.name == "config.yaml" and RunDir(path.parent).record.exists()


def known_model_config(config: RunConfig) -> dict[str, Any] | None:
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


def _name(config: RunConfig, path: Path | None) -> str:
    """The run's name, fit for a folder: what a file or job is called may not be."""
    name = config.name or config.slurm.job_name or (path.stem if path else _name_of_entry(config))
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).lstrip("._-")[:64] or "run"


def _name_of_entry(config: RunConfig) -> str:
    """``train-main`` for ``my_package.train.main``."""
    return "-".join(config.entry.target.split(".")[-2:]) if config.entry else "run"


def json_schema() -> dict[str, Any]:
    """JSON Schema (draft 2020-12) of a configuration file, for editors: docs, defaults, aliases."""
    from submitrain.config.schema import editor_schema

    return editor_schema()
