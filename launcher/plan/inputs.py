"""Checks what a configuration points at, as far as this machine can see it: local paths only.

Hub names are the ranks' to resolve: the machine that launches may have no network and no cache.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.errors import DataError, UserError
from submitrain.launcher.container import is_path as is_image_path
from submitrain.launcher.container_paths import outside_path

_DATA_SUFFIXES = (".jsonl", ".json", ".parquet")


def check_inputs(config: RunConfig, workdir: Path, *, contained: bool = False) -> None:
    """Refuse local models and data sets that are missing or empty, before anything is submitted.

    ``contained``: ranks run in a container, so paths are those inside; mounts tell where the host
    has them. What the run before this one (``after``) has yet to write is not looked for.

    Raises:
        UserError: one line for every problem.
    """

    def here(name: str) -> Path:
        path = Path(name).expanduser()
        if not contained:
            return workdir / path
        return outside_path(Path(config.slurm.container_workdir or workdir) / path, config)

    def problems() -> Iterator[str | None]:
        if contained:
            yield _image_problem(config.slurm.container_image or "", workdir)
        names = {
            "model": config.model.pretrained_model_name_or_path,
            "tokenizer": config.model.tokenizer,
            "dataset": config.dataset.dataset_name,
            "validation_dataset": getattr(config.validation_dataset, "dataset_name", None),
        }
        for section, name in names.items():
            if name is None or (config.after and here(name).is_relative_to(config.after)):
                continue
            if section == "model":
                yield _model_problem(name, here(name))
            elif section != "tokenizer":
                yield _data_problem(f"{section}.dataset_name", name, here(name))
            elif _is_path_like(name) and not here(name).exists():
                yield (
                    f"model.tokenizer: expected a folder or a hub name, got {name}: no such folder"
                )

    if found := [problem for problem in problems() if problem]:
        error = DataError if all("dataset" in line for line in found) else UserError
        raise error("\n".join(found))


def _is_path_like(name: str) -> bool:
    """Whether a name can only be a path; ``org/name`` may be a hub name."""
    return name.startswith(("/", "./", "../", "~"))


def _image_problem(image: str, workdir: Path) -> str | None:
    """A missing image file; where its folder is missing, too, this machine may not see it."""
    path = workdir / Path(image).expanduser()
    if not is_image_path(image) or path.exists() or not path.parent.is_dir():
        return None
    return (
        f"slurm.container_image: expected an image, got {image}: no such file ({path}); build it, "
        "or name another one"
    )


def _model_problem(name: str, path: Path) -> str | None:
    key = "model.pretrained_model_name_or_path"
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


def _data_problem(key: str, name: str, path: Path) -> str | None:
    if not (_is_path_like(name) or name.endswith(_DATA_SUFFIXES)):
        return None
    if not path.exists():
        where = "" if str(path) == name else f" ({path})"
        return f"{key}: expected a file, a folder or a hub name, got {name}: no such file{where}"
    if path.is_dir():
        if any(next(path.rglob(f"*{suffix}"), None) for suffix in _DATA_SUFFIXES):
            return None
        return (
            f"{key}: expected {', '.join(_DATA_SUFFIXES)} files, got a folder without any ({path})"
        )
    if path.suffix != ".jsonl":
        empty = path.stat().st_size == 0
        return f"{key}: expected at least one sample, got an empty file ({path})" if empty else None
    with path.open("rb") as file:
        first = next(((n, line) for n, line in enumerate(file, start=1) if line.strip()), None)
    if first is None:
        return f"{key}: expected one JSON object a line, got a file without any ({path})"
    number, line = first
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    if isinstance(value, dict):
        return None
    shown = line[:40].decode(errors="replace").strip()
    return f"{key}: expected one JSON object a line, got `{shown}` ({path}:{number})"
