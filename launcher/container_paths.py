"""The path check: whatever training reads or writes exists inside the container, and lasts. Pure.

What ranks write (run folder, checkpoints, caches) is mounted by us under its own path. What is left
to go wrong is said here, before anything is submitted.

How an image is named, and in each runtime's own spelling. Pure.

Sources: github.com/NVIDIA/enroot (doc/cmd/import.md), the user guide of Apptainer ("Supported
URIs").

What is mounted into the ranks' container. Pure, but for the link that a run folder may hold.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from enum import Enum, StrEnum, auto
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.launcher.supervisor.processes import package_root
from submitrain.run_folder import RunDir

_APPTAINER_SCHEMES = ("library://", "oras://", "shub://", "docker-archive:", "oci:", "oci-archive:")
_DOCKER = "docker://"


class ImageForm(StrEnum):
    """What kind of thing a name of an image names."""

    SQUASHFS = "squashfs"
    """A file that enroot made: ``.sqsh``."""
    SIF = "sif"
    """A file or folder that Apptainer made, or a name that only Apptainer resolves."""
    REGISTRY = "registry"
    """A name in a registry."""


def form_of(image: str) -> ImageForm:
    """The form by the name alone; a path without a known suffix is a folder (a sandbox)."""
    if image.endswith((".sqsh", ".squashfs")):
        return ImageForm.SQUASHFS
    if image.endswith(".sif") or image.startswith(_APPTAINER_SCHEMES) or is_path(image):
        return ImageForm.SIF
    return ImageForm.REGISTRY


def is_path(image: str) -> bool:
    """Whether it names a file or folder of this machine."""
    return image.startswith(("/", "./", "../", "~/")) or (
        image.endswith((".sqsh", ".squashfs", ".sif")) and "://" not in image
    )


def normalise_image(image: str, *, pyxis: bool) -> str:
    """An image in the spelling of pyxis (``nvcr.io#nvidia/nemo:25.07``) or of Apptainer
    (``docker://nvcr.io/nvidia/nemo:25.07``); paths and other schemes stay as they are.

    enroot sets the registry off with ``#``; a relative path needs its ``./``.
    """
    if is_path(image):
        path = str(Path(image).expanduser()) if image.startswith("~") else image
        return path if path.startswith(("/", "./", "../")) else f"./{path}"
    if image.startswith(_APPTAINER_SCHEMES) or ("://" in image and not image.startswith(_DOCKER)):
        return image
    if pyxis:
        return _for_enroot(image)
    return _DOCKER + image.removeprefix(_DOCKER).replace("#", "/", 1)


def _for_enroot(image: str) -> str:
    image = image.removeprefix(_DOCKER)
    first, slash, rest = image.partition("/")
    is_registry = "." in first or ":" in first or first == "localhost"
    if not slash or not first or "#" in image or not is_registry:
        return image
    return f"{first}#{rest}"


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host under a path inside."""

    source: Path
    target: Path
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mount:
        """``src:dst[:ro]``, as ``submitrain.config.slurm_checks`` has checked it."""
        source, target, flags = [*text.split(":"), ""][:3]
        return cls(Path(source), Path(target), tuple(flag for flag in flags.split("+") if flag))

    @classmethod
    def same(cls, path: Path, *flags: str) -> Mount:
        """Under the same path outside and inside."""
        return cls(path, path, flags)

    @property
    def read_only(self) -> bool:
        """Whether ranks cannot write there."""
        return "ro" in self.flags

    def __str__(self) -> str:
        flags = f":{'+'.join(self.flags)}" if self.flags else ""
        return f"{self.source}:{self.target}{flags}"

    def shows(self, inside: Path) -> bool:
        """Whether a path inside lies in this mount."""
        return inside.is_relative_to(self.target)

    def holds(self, outside: Path) -> bool:
        """Whether a path of the host lies in this mount."""
        return outside.is_relative_to(self.source)

    def outside_of(self, inside: Path) -> Path:
        """The host's path of a path inside this mount."""
        return self.source / inside.relative_to(self.target)


def users_mounts(config: RunConfig) -> tuple[Mount, ...]:
    """``slurm.extra_mounts``."""
    return tuple(Mount.parse(text) for text in config.slurm.extra_mounts)


def mount_of(inside: Path, mounts: tuple[Mount, ...]) -> Mount | None:
    """The mount in which a path inside lies: the deepest one, of equals the last."""
    found = [mount for mount in mounts if mount.shows(inside)]
    return max(reversed(found), key=lambda mount: len(mount.target.parts), default=None)


def container_mounts(config: RunConfig, run_dir: RunDir) -> tuple[Mount, ...]:
    """The user's mounts, then what ranks write and no mount of the user covers, then our packages.

    Data and models are only read: mounting those is the user's to say (``launcher.container_paths``
    asks for it).
    """
    mounts = users_mounts(config)
    for folder in (run_dir.root, run_dir.checkpoints.resolve()):
        if not covered(folder, mounts):
            mounts += (Mount.same(folder),)
    for folder in caches(config, run_dir):
        if mount_of(folder, mounts) is None:
            mounts += (Mount.same(folder),)
    root = package_root()
    if root is not None and not covered(root, mounts, writable=False):
        mounts += (Mount.same(root, "ro"),)
    return mounts


def caches(config: RunConfig, run_dir: RunDir) -> tuple[Path, ...]:
    """Absolute folders of the hub cache and of tokenized data, as they are called inside."""
    data = [one for one in (config.dataset, config.validation_dataset) if one is not None]
    named = [config.slurm.hf_home, *(one.cache_dir for one in data)]
    found = [Path(name).expanduser() for name in named if name]
    if any(one.cache_dir is None for one in data):
        found.append(run_dir.data_cache)
    return tuple(dict.fromkeys(path for path in found if path.is_absolute()))


def covered(folder: Path, mounts: tuple[Mount, ...], *, writable: bool = True) -> bool:
    """Whether a mount shows ``folder`` inside under the same path."""
    mount = mount_of(folder, mounts)
    if mount is None or (writable and mount.read_only):
        return False
    return mount.outside_of(folder) == folder


def make_sources(folders: Iterable[Path]) -> None:
    """Make folders that are about to be mounted: no runtime mounts what is not there.

    One that cannot be made is left to the runtime, whose words name it.
    """
    for folder in folders:
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)


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
        if value and (use is Use.CACHE or must_be_path(value)):
            yield UsedPath(key, value, Path(value).expanduser(), use)


def outside_path(path: Path, config: RunConfig) -> Path:
    """Where the host has what ranks find under an absolute path; the same without a container."""
    if not config.slurm.in_container:
        return path
    mount = mount_of(path, users_mounts(config))
    return path if mount is None else mount.outside_of(path)


def must_be_path(value: str) -> bool:
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
