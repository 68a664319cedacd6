"""Checks what a configuration points at, as far as this machine can see it: local paths only.

Hub names are the ranks' to resolve: the machine that launches may have no network and no cache.

Keep secrets out of every file: literal ones are refused, named ones only where they are safe.

Values that look like a secret are never shown. Pure; imports no torch.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.config.document import Document, KeyPath
from submitrain.config.placeholders import WANDB, looks_secret, names_secret, placeholder_names
from submitrain.config.resolve import Problems, in_our_spelling
from submitrain.config.schema import ENVIRONMENT_ONLY, VERBATIM
from submitrain.config.sections import DatasetConfig
from submitrain.errors import DataError, UserError
from submitrain.launcher.container_paths import is_path as is_image_path
from submitrain.launcher.container_paths import outside_path


def refuse_secrets(document: Document) -> None:
    """Refuse literal secrets anywhere, and secret variables in what ends in the sbatch text.

    Raises:
        ConfigError: one line for each, without the value.
    """
    document, _ = in_our_spelling(document)
    problems = Problems(document)
    for path, text in _texts(document.tree, ()):
        problem = _literal(path, text) or _in_sbatch(path, text)
        if problem:
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


_DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


def check_inputs(config: RunConfig, workdir: Path, *, contained: bool = False) -> None:
    """Refuse local models and data sets that are missing or empty, before anything is submitted.

    ``contained``: ranks run in a container, so paths are those inside; mounts tell where the host
    has them.

    Raises:
        UserError: one line for every problem.
    """

    def here(name: str) -> Path:
        path = Path(name).expanduser()
        if not contained:
            return workdir / path
        return outside_path(Path(config.slurm.container_workdir or workdir) / path, config)

    def comes(name: str | None) -> bool:
        """Whether the run before this one has yet to write it."""
        folder = config.after
        return bool(name and folder) and here(name or "").is_relative_to(folder or "")

    problems = [_image_problem(config, workdir) if contained else None]
    if not comes(config.model.pretrained_model_name_or_path):
        problems.append(_model_problem(config, here))
    if not comes(config.model.tokenizer):
        problems.append(_tokenizer_problem(config, here))
    for section, data in (
        ("dataset", config.dataset),
        ("validation_dataset", config.validation_dataset),
    ):
        if data is not None and not comes(data.dataset_name):
            problems.append(_data_problem(section, data, here))
    found = [problem for problem in problems if problem]
    if found:
        raise (DataError if all("dataset" in line for line in found) else UserError)(
            "\n".join(found)
        )


def _image_problem(config: RunConfig, workdir: Path) -> str | None:
    """A missing image file; where its folder is missing, too, this machine may not see it."""
    image = config.slurm.container_image or ""
    if not is_image_path(image):
        return None
    path = workdir / Path(image).expanduser()
    if path.exists() or not path.parent.is_dir():
        return None
    return (
        f"slurm.container_image: expected an image, got {image}: no such file ({path}); build it, "
        "or name another one"
    )


def _model_problem(config: RunConfig, here: Callable[[str], Path]) -> str | None:
    name = config.model.pretrained_model_name_or_path
    if name is None:
        return None
    key = "model.pretrained_model_name_or_path"
    path = here(name)
    if not path.exists():
        if not _is_path_like(name):
            return None
        return f"{key}: expected a folder with a model or a hub name, got {name}: no such folder"
    if not (path / "config.json").is_file():
        return (
            f"{key}: expected a folder with a config.json, got {path} without one; "
            "name the folder that save_pretrained wrote"
        )
    return None


def _tokenizer_problem(config: RunConfig, here: Callable[[str], Path]) -> str | None:
    name = config.model.tokenizer
    if name is None or not _is_path_like(name):
        return None
    if here(name).exists():
        return None
    return f"model.tokenizer: expected a folder or a hub name, got {name}: no such folder"


def _data_problem(section: str, dataset: DatasetConfig, here: Callable[[str], Path]) -> str | None:
    name = dataset.dataset_name
    if name is None or not (_is_path_like(name) or name.endswith(_DATA_SUFFIXES)):
        return None
    path, key = here(name), f"{section}.dataset_name"
    if not path.exists():
        where = "" if str(path) == name else f" ({path})"
        return f"{key}: expected a file, a folder or a hub name, got {name}: no such file{where}"
    if path.is_dir():
        if any(_has(path, suffix) for suffix in _DATA_SUFFIXES):
            return None
        return (
            f"{key}: expected {', '.join(_DATA_SUFFIXES)} files, got a folder without any ({path})"
        )
    return _file_problem(key, path)


def _has(folder: Path, suffix: str) -> bool:
    return next(folder.rglob(f"*{suffix}"), None) is not None


def _file_problem(key: str, path: Path) -> str | None:
    if path.suffix != ".jsonl":
        empty = path.stat().st_size == 0
        return f"{key}: expected at least one sample, got an empty file ({path})" if empty else None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                return _line_problem(key, path, number, line)
    return f"{key}: expected one JSON object a line, got a file without any ({path})"


def _line_problem(key: str, path: Path, number: int, line: bytes) -> str | None:
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return None
    shown = line[:40].decode(errors="replace").strip()
    return f"{key}: expected one JSON object a line, got `{shown}` ({path}:{number})"


def _is_path_like(name: str) -> bool:
    """Whether a name can only be a path: ``/a``, ``./a``, ``../a``, ``~/a``; ``org/name`` may be a
    hub name."""
    return name.startswith(("/", "./", "../", "~"))
