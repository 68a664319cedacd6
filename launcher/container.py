"""Containers for ranks: the flags of pyxis, and what must be mounted. Pure.

Sources: github.com/NVIDIA/pyxis (usage), github.com/NVIDIA/enroot (image names).
"""

from __future__ import annotations

from pathlib import Path

from launcher.spawn import package_root
from train.config import RunConfig
from train.rundir import RunDir


def container_flags(config: RunConfig, run_dir: RunDir, variables: tuple[str, ...]) -> list[str]:
    """Flags of the pyxis plugin (github.com/NVIDIA/pyxis, "Usage")."""
    slurm = config.slurm
    mounts = container_mounts(config, run_dir)
    flags = [
        f"--container-image={normalise_image(slurm.container_image or '')}",
        f"--container-mounts={','.join(mounts)}",
        "--no-container-mount-home",
    ]
    if slurm.container_workdir:
        flags.append(f"--container-workdir={slurm.container_workdir}")
    if variables:
        flags.append(f"--container-env={','.join(sorted(variables))}")
    return flags


def container_mounts(config: RunConfig, run_dir: RunDir) -> list[str]:
    """The user's mounts, and what a rank cannot do without, unless one of those covers it.

    Needed: the run folder, the place of its checkpoints, the hub cache, and our packages where they
    run from a source tree.
    """
    mounts = list(config.slurm.extra_mounts)
    root = package_root()
    needed = [run_dir.root, run_dir.checkpoints.resolve()]
    needed += [Path(config.slurm.hf_home)] if config.slurm.hf_home else []
    for folder in needed:
        if not any(_covers(mount, folder, writable=True) for mount in mounts):
            mounts.append(f"{folder}:{folder}")
    if root is not None and not any(_covers(mount, root, writable=False) for mount in mounts):
        mounts.append(f"{root}:{root}:ro")
    return mounts


def _covers(mount: str, folder: Path, *, writable: bool) -> bool:
    """Whether a mount shows ``folder`` inside under the same path."""
    source, target, flags = [*mount.split(":"), "", ""][:3]
    if Path(source) != Path(target or source) or (writable and "ro" in flags.split("+")):
        return False
    return folder == Path(source) or Path(source) in folder.parents


def normalise_image(image: str) -> str:
    """An image in enroot's spelling: the registry is set off with ``#``, not ``/``.

    ``docker://nvcr.io/nvidia/pytorch:25.01-py3`` → ``nvcr.io#nvidia/pytorch:25.01-py3``. Paths,
    other schemes and names that have a ``#`` stay as they are (github.com/NVIDIA/enroot, import).
    """
    image = image.removeprefix("docker://")
    first, slash, rest = image.partition("/")
    is_registry = "." in first or ":" in first or first == "localhost"
    if not slash or not first or "#" in image or "://" in image or not is_registry:
        return image
    return image if first in (".", "..") else f"{first}#{rest}"
