"""The path check: whatever training reads or writes exists inside the container, and lasts. Pure.

What ranks write (run folder, checkpoints, caches) is mounted by us under its own path. What is left
to go wrong is said here, before anything is submitted.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, auto
from pathlib import Path

from launcher.container.mounts import Mount, mount_of, users_mounts
from train.config import RunConfig

_UNMOUNTABLE = re.compile(r"[:,\s]")
_DATA_FILE = (".jsonl", ".json", ".parquet")
_LIKE_A_PATH = ("/", "./", "../", "~")


class Use(Enum):
    """What ranks, and others, do with a path."""

    READ = auto()
    """Ranks read it."""
    CACHE = auto()
    """Ranks write it; nobody outside looks for it."""
    RESULT = auto()
    """Ranks write it; the supervisor, the monitor and ``resume`` read it outside."""


@dataclass(frozen=True)
class UsedPath:
    """A path that the configuration names."""

    key: str
    text: str
    path: Path
    use: Use


def path_problems(config: RunConfig, *, runs_dir: Path, workdir: Path) -> Iterator[str]:
    """What would be missing, read-only or lost inside; one line each, beginning with the key.

    Args:
        runs_dir: where run folders are made, absolute.
        workdir: folder of the launch, against which ``checkpoint_dir`` is read.
    """
    mounts = users_mounts(config)
    yield from _same_target(mounts)
    yield from _run_folder(runs_dir, mounts)
    for used in used_paths(config, workdir):
        inside = _inside(used, config)
        if isinstance(inside, str):
            yield inside
        elif problem := _problem(used, inside, mounts):
            yield problem


def used_paths(config: RunConfig, workdir: Path) -> Iterator[UsedPath]:
    """The paths among the configuration's values; names on the hub are none."""
    if config.checkpoint.checkpoint_dir is not None:
        text = config.checkpoint.checkpoint_dir
        path = workdir / Path(text).expanduser()
        yield UsedPath("checkpoint.checkpoint_dir", text, path, Use.RESULT)
    model = config.model
    named: list[tuple[str, str | None, Use]] = [
        ("model.pretrained_model_name_or_path", model.pretrained_model_name_or_path, Use.READ),
        ("model.tokenizer", model.tokenizer, Use.READ),
        ("slurm.hf_home", config.slurm.hf_home, Use.CACHE),
    ]
    for section in ("dataset", "validation_dataset"):
        data = getattr(config, section)
        if data is not None:
            named += [
                (f"{section}.dataset_name", data.dataset_name, Use.READ),
                (f"{section}.chat_template", data.chat_template, Use.READ),
                (f"{section}.cache_dir", data.cache_dir, Use.CACHE),
            ]
    for key, value, use in named:
        if value and (use is Use.CACHE or is_path(value)):
            yield UsedPath(key, value, Path(value).expanduser(), use)


def outside_path(path: Path, config: RunConfig) -> Path:
    """Where the host has what ranks find under an absolute path; the same without a container."""
    if not config.slurm.in_container:
        return path
    mount = mount_of(path, users_mounts(config))
    return path if mount is None else mount.outside_of(path)


def is_path(value: str) -> bool:
    """Whether it can only be a path: ``org/name`` may be on the hub, ``a{{b}}`` is a template."""
    return "{" not in value and (value.startswith(_LIKE_A_PATH) or value.endswith(_DATA_FILE))


def _same_target(mounts: tuple[Mount, ...]) -> Iterator[str]:
    for index, mount in enumerate(mounts):
        twin = next((one for one in mounts[:index] if one.target == mount.target), None)
        if twin is not None:
            yield (
                f"slurm.extra_mounts.{index}: expected one mount at {mount.target}, got "
                f"{twin.source} and {mount.source}; remove one"
            )


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


def _inside(used: UsedPath, config: RunConfig) -> Path | str:
    """The absolute path inside, or what is wrong with a relative one."""
    if used.path.is_absolute():
        return used.path
    workdir = config.slurm.container_workdir
    if workdir is not None and mount_of(Path(workdir), users_mounts(config)) is not None:
        return Path(workdir) / used.path
    return (
        f"{used.key}: expected an absolute path with a container, got {used.text!r}; the ranks' "
        "working folder is another one inside: write the whole path, or set "
        "slurm.container_workdir to a mounted folder"
    )


def _problem(used: UsedPath, inside: Path, mounts: tuple[Mount, ...]) -> str | None:
    mount = mount_of(inside, mounts)
    if mount is None:
        return _not_inside(used, mounts)
    if used.use is Use.READ:
        return None
    if used.use is Use.RESULT and mount.outside_of(inside) != used.path:
        outside = mount.outside_of(inside)
        return (
            f"{used.key}: {used.text} exists only inside the container, outside it is {outside}: "
            f"monitoring and resume look for it on the host; write {outside}, and mount it under "
            f"the same path ({mount.source}:{mount.source})"
        )
    return _read_only(used.key, used.text, used.path, mount) if mount.read_only else None


def _not_inside(used: UsedPath, mounts: tuple[Mount, ...]) -> str | None:
    """A path that no mount shows: we mount what is written, unless the user has it elsewhere."""
    elsewhere = next((one for one in mounts if one.holds(used.path)), None)
    if elsewhere is not None:
        shown = elsewhere.target / used.path.relative_to(elsewhere.source)
        same = f"mount it under its own path ({elsewhere.source}:{elsewhere.source})"
        remedy = same if used.use is Use.RESULT else f"write {shown}, or {same}"
        return (
            f"{used.key}: {used.text} does not exist inside the container: {elsewhere} shows it "
            f"as {shown}; {remedy}"
        )
    if used.use is Use.READ:
        return (
            f"{used.key}: {used.text} is under no mount of the container: ranks will not find it; "
            f"add {used.path}:{used.path}:ro to slurm.extra_mounts"
        )
    if match := _UNMOUNTABLE.search(str(used.path)):
        return (
            f"{used.key}: expected a path without {match[0]!r} with a container, got {used.text}; "
            "lists of mounts are separated by it"
        )
    return None


def _read_only(key: str, text: str, path: Path, mount: Mount) -> str:
    return (
        f"{key}: {text} is read-only inside the container ({mount}), and ranks write there; remove "
        f":ro, or add {path}:{path} to slurm.extra_mounts"
    )
