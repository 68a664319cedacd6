"""The container of the ranks: its image, the runtime that starts it, and what is mounted in it.

The supervisor stays outside, so the host needs no training environment and the image no scheduler.
Sources: github.com/NVIDIA/pyxis ("Usage"), github.com/NVIDIA/enroot (doc/cmd/import.md),
apptainer-exec(1), the user guides of Apptainer and SingularityCE ("Supported URIs", "Environment
and Metadata").
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from submitrain.config import RunConfig
from submitrain.config.job import SlurmConfig
from submitrain.launcher.supervisor.processes import package_root
from submitrain.run_folder import RunDir
from submitrain.slurm.client import PYXIS_OPTION, srun_help

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
    image = image.removeprefix(_DOCKER)
    if not pyxis:
        return _DOCKER + image.replace("#", "/", 1)
    first, slash, rest = image.partition("/")
    is_registry = "." in first or ":" in first or first == "localhost"
    return f"{first}#{rest}" if slash and is_registry and "#" not in image else image


class Runtime(StrEnum):
    """Programs that run containers, in the order in which ``auto`` prefers them."""

    PYXIS = "pyxis"
    """The plugin of srun that runs enroot (github.com/NVIDIA/pyxis)."""
    APPTAINER = "apptainer"
    SINGULARITY = "singularity"

    @property
    def wraps(self) -> bool:
        """Whether it is a command before the ranks' own, and not a plugin of srun."""
        return self is not Runtime.PYXIS


_FOR_FORM = {
    ImageForm.SQUASHFS: (Runtime.PYXIS,),
    ImageForm.SIF: (Runtime.APPTAINER, Runtime.SINGULARITY),
    ImageForm.REGISTRY: tuple(Runtime),
}


def choose_runtime(slurm: SlurmConfig, installed: Collection[Runtime] = ()) -> Runtime | None:
    """What runs the image; None without a container. Pure.

    ``auto`` takes the first that can run this form of image among those ``installed``; where none
    of them is, the first that could, so that its own error says what is missing.
    """
    if not slurm.in_container:
        return None
    if slurm.container_runtime != "auto":
        return Runtime(slurm.container_runtime)
    able = _FOR_FORM[form_of(slurm.container_image or "")]
    return next((one for one in able if one in installed), able[0])


def installed_runtimes() -> frozenset[Runtime]:
    """Runtimes on this machine; srun's own help tells whether it has the plugin."""
    found = {one for one in Runtime if one.wraps and shutil.which(one.value)}
    if shutil.which("srun") and PYXIS_OPTION in srun_help().out:
        found.add(Runtime.PYXIS)
    return frozenset(found)


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

    @property
    def read_only(self) -> bool:
        """Whether ranks cannot write there."""
        return "ro" in self.flags

    def __str__(self) -> str:
        flags = f":{'+'.join(self.flags)}" if self.flags else ""
        return f"{self.source}:{self.target}{flags}"

    def outside_of(self, inside: Path) -> Path:
        """The host's path of a path inside this mount."""
        return self.source / inside.relative_to(self.target)


def users_mounts(config: RunConfig) -> tuple[Mount, ...]:
    """``slurm.extra_mounts``."""
    return tuple(Mount.parse(text) for text in config.slurm.extra_mounts)


def mount_of(inside: Path, mounts: tuple[Mount, ...]) -> Mount | None:
    """The mount in which a path inside lies: the deepest one, of equals the last."""
    found = [mount for mount in mounts if inside.is_relative_to(mount.target)]
    return max(reversed(found), key=lambda mount: len(mount.target.parts), default=None)


def container_mounts(config: RunConfig, run_dir: RunDir) -> tuple[Mount, ...]:
    """The user's mounts, then what ranks write and no mount of the user covers, then our packages.

    Data and models are only read: mounting those is the user's to say (``launcher.container_paths``
    asks for it).
    """
    mounts = users_mounts(config)
    for folder in (run_dir.root, run_dir.checkpoints.resolve()):
        if not _covered(folder, mounts):
            mounts += (Mount(folder, folder),)
    for folder in caches(config, run_dir):
        if mount_of(folder, mounts) is None:
            mounts += (Mount(folder, folder),)
    root = package_root()
    if root is not None and not _covered(root, mounts, writable=False):
        mounts += (Mount(root, root, ("ro",)),)
    return mounts


def caches(config: RunConfig, run_dir: RunDir) -> tuple[Path, ...]:
    """Absolute folders of the hub cache and of tokenized data, as they are called inside."""
    data = [one for one in (config.dataset, config.validation_dataset) if one is not None]
    named = [config.slurm.hf_home, *(one.cache_dir for one in data)]
    found = [Path(name).expanduser() for name in named if name]
    if any(one.cache_dir is None for one in data):
        found.append(run_dir.data_cache)
    return tuple(dict.fromkeys(path for path in found if path.is_absolute()))


def _covered(folder: Path, mounts: tuple[Mount, ...], *, writable: bool = True) -> bool:
    """Whether a mount shows ``folder`` inside under the same path."""
    mount = mount_of(folder, mounts)
    if mount is None or (writable and mount.read_only):
        return False
    return mount.outside_of(folder) == folder


def make_caches(config: RunConfig, run_dir: RunDir) -> None:
    """Make the caches that are about to be mounted: no runtime mounts what is not there.

    One that cannot be made is left to the runtime, whose words name it.
    """
    for folder in caches(config, run_dir):
        with suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)


_ENV_PREFIX = {Runtime.APPTAINER: "APPTAINERENV_", Runtime.SINGULARITY: "SINGULARITYENV_"}
_OF_THE_HOST = ("LD_PRELOAD", "PYTHONHOME")
"""Variables that would have the image's programs load the host's files."""


@dataclass(frozen=True)
class ContainerStep:
    """How a step gets into its container."""

    runtime: Runtime
    srun_flags: tuple[str, ...] = ()
    prefix: tuple[str, ...] = ()
    """Words between srun's options and the ranks' command."""
    mounts: tuple[Mount, ...] = ()

    def environment(self, variables: Mapping[str, str], named: tuple[str, ...]) -> dict[str, str]:
        """Environment for srun; ``named`` variables win over the image's own.

        Never by ``--env``: other users of the node can read a command line (ps).
        """
        kept = {name: value for name, value in variables.items() if name not in _OF_THE_HOST}
        prefix = _ENV_PREFIX.get(self.runtime)
        if prefix is None:
            return kept
        return kept | {f"{prefix}{name}": variables[name] for name in named if name in variables}


def container_step(
    config: RunConfig,
    run_dir: RunDir,
    runtime: Runtime | None,
    *,
    has_gpus: bool,
    variables: tuple[str, ...] = (),
) -> ContainerStep | None:
    """Flags for srun (pyxis), or the command before the ranks' own (Apptainer, Singularity).

    None without a ``runtime``; ``variables`` are names that the ranks must see.
    """
    if runtime is None:
        return None
    mounts = container_mounts(config, run_dir)
    image = normalise_image(config.slurm.container_image or "", pyxis=not runtime.wraps)
    workdir = config.slurm.container_workdir
    if runtime is Runtime.PYXIS:
        flags = [
            f"--container-image={image}",
            f"--container-mounts={','.join(map(str, mounts))}",
            "--no-container-mount-home",
        ]
        flags += [f"--container-workdir={workdir}"] if workdir else []
        flags += [f"--container-env={','.join(sorted(variables))}"] if variables else []
        return ContainerStep(runtime, srun_flags=tuple(flags), mounts=mounts)
    words = [runtime.value, "exec"]
    if has_gpus:
        kind = f"{config.slurm.gpu_type} {config.slurm.gres}"
        words.append("--rocm" if re.search(r"\bmi\d{2,3}", kind, re.IGNORECASE) else "--nv")
    words.append("--no-home")  # packages in ~/.local would shadow the image's
    for mount in mounts:
        words += ["--bind", str(mount)]
    # The working folder of the job need not exist inside; the run folder does.
    words += ["--pwd", workdir or str(run_dir.root), image]
    return ContainerStep(runtime, prefix=tuple(words), mounts=mounts)
