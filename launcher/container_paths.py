"""The path check of containers: what ranks read or write exists inside, and lasts.

What ranks write (run folder, checkpoints, caches) is mounted by us under its own path. What is left
to go wrong is said here, before anything is submitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from enum import Enum, auto
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.launcher.container import Mount, mount_of, users_mounts

_UNMOUNTABLE = re.compile(r"[:,\s]")


class Use(Enum):
    """What ranks, and others, do with a path."""

    READ = auto()
    """Ranks read it."""
    CACHE = auto()
    """Ranks write it; nobody outside looks for it."""
    RESULT = auto()
    """Ranks write it; the supervisor, the monitor and ``resume`` read it outside."""


def path_problems(config: RunConfig, *, runs_dir: Path, workdir: Path) -> Iterator[str]:
    """What would be missing, read-only or lost inside; one line each, beginning with the key.

    Args:
        runs_dir: where run folders are made, absolute.
        workdir: folder of the launch, against which ``checkpoint_dir`` is read.
    """
    mounts = users_mounts(config)
    for index, mount in enumerate(mounts):
        twin = next((one for one in mounts[:index] if one.target == mount.target), None)
        if twin is not None:
            yield (
                f"slurm.extra_mounts.{index}: expected one mount at {mount.target}, got "
                f"{twin.source} and {mount.source}; remove one"
            )
    yield from _run_folder(runs_dir, mounts)
    if (text := config.checkpoint.checkpoint_dir) is not None:
        path = workdir / Path(text).expanduser()
        yield from _problem("checkpoint.checkpoint_dir", text, path, Use.RESULT, mounts)
    inside_workdir = config.slurm.container_workdir
    for key, text, use in _used_paths(config):
        path = inside = Path(text).expanduser()
        if not path.is_absolute():
            if inside_workdir is None or mount_of(Path(inside_workdir), mounts) is None:
                yield (
                    f"{key}: expected an absolute path with a container, got {text!r}; the ranks' "
                    "working folder is another one inside: write the whole path, or set "
                    "slurm.container_workdir to a mounted folder"
                )
                continue
            inside = Path(inside_workdir) / path
        yield from _problem(key, text, path, use, mounts, inside)


def _used_paths(config: RunConfig) -> Iterator[tuple[str, str, Use]]:
    """The paths among the configuration's values, with their keys; names on the hub are none."""
    model = config.model
    named: list[tuple[str, str | None, Use]] = [
        ("model.pretrained_model_name_or_path", model.pretrained_model_name_or_path, Use.READ),
        ("model.tokenizer", model.tokenizer, Use.READ),
        ("slurm.hf_home", config.slurm.hf_home, Use.CACHE),
    ]
    for section in ("dataset", "validation_dataset"):
        if (data := getattr(config, section)) is not None:
            named += [
                (f"{section}.dataset_name", data.dataset_name, Use.READ),
                (f"{section}.chat_template", data.chat_template, Use.READ),
                (f"{section}.cache_dir", data.cache_dir, Use.CACHE),
            ]
    for key, value, use in named:
        if value and (use is Use.CACHE or must_be_path(value)):
            yield key, value, use


def outside_path(path: Path, config: RunConfig) -> Path:
    """Where the host has what ranks find under an absolute path; the same without a container."""
    if not config.slurm.in_container:
        return path
    mount = mount_of(path, users_mounts(config))
    return path if mount is None else mount.outside_of(path)


def must_be_path(value: str) -> bool:
    """Whether it can only be a path: ``org/name`` may be on the hub, ``a{{b}}`` is a template."""
    is_path = value.startswith(("/", "./", "../", "~"))
    return "{" not in value and (is_path or value.endswith((".jsonl", ".json", ".parquet")))


def _run_folder(runs_dir: Path, mounts: tuple[Mount, ...]) -> Iterator[str]:
    if match := _UNMOUNTABLE.search(str(runs_dir)):
        yield (
            f"runs_dir: expected a path without {match[0]!r} with a container, got {runs_dir}; "
            "lists of mounts are separated by it: set runs_dir to another folder"
        )
    mount = mount_of(runs_dir, mounts)
    if mount is None:
        return
    if mount.outside_of(runs_dir) != runs_dir:
        yield (
            f"runs_dir: inside, {mount} hides {runs_dir}: the supervisor would wait for events "
            "that nobody sees; mount it elsewhere, or move runs_dir"
        )
    elif mount.read_only:
        yield _read_only("runs_dir", str(runs_dir), runs_dir, mount)


def _problem(
    key: str,
    text: str,
    path: Path,
    use: Use,
    mounts: tuple[Mount, ...],
    inside: Path | None = None,
) -> Iterator[str]:
    """What is wrong with a path that ranks use as ``inside``; ``path`` where that is None."""
    mount = mount_of(inside or path, mounts)
    if mount is None:
        yield from _not_inside(key, text, path, use, mounts)
    elif use is Use.RESULT and (outside := mount.outside_of(inside or path)) != path:
        yield (
            f"{key}: {text} exists only inside the container, outside it is {outside}: "
            f"monitoring and resume look for it on the host; write {outside}, and mount it under "
            f"the same path ({mount.source}:{mount.source})"
        )
    elif use is not Use.READ and mount.read_only:
        yield _read_only(key, text, path, mount)


def _not_inside(
    key: str, text: str, path: Path, use: Use, mounts: tuple[Mount, ...]
) -> Iterator[str]:
    """A path that no mount shows: we mount what is written, unless the user has it elsewhere."""
    elsewhere = next((one for one in mounts if path.is_relative_to(one.source)), None)
    if elsewhere is not None:
        shown = elsewhere.target / path.relative_to(elsewhere.source)
        same = f"mount it under its own path ({elsewhere.source}:{elsewhere.source})"
        remedy = same if use is Use.RESULT else f"write {shown}, or {same}"
        yield (
            f"{key}: {text} does not exist inside the container: {elsewhere} shows it "
            f"as {shown}; {remedy}"
        )
    elif use is Use.READ:
        yield (
            f"{key}: {text} is under no mount of the container: ranks will not find it; "
            f"add {path}:{path}:ro to slurm.extra_mounts"
        )
    elif match := _UNMOUNTABLE.search(str(path)):
        yield (
            f"{key}: expected a path without {match[0]!r} with a container, got {text}; "
            "lists of mounts are separated by it"
        )


def _read_only(key: str, text: str, path: Path, mount: Mount) -> str:
    return (
        f"{key}: {text} is read-only inside the container ({mount}), and ranks write there; remove "
        f":ro, or add {path}:{path} to slurm.extra_mounts"
    )
