"""What is mounted into the ranks' container. Pure, but for the link that a run folder may hold."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.spawn import package_root
from train.config import RunConfig
from train.rundir import RunDir


@dataclass(frozen=True)
class Mount:
    """A folder or file of the host under a path inside."""

    source: Path
    target: Path
    flags: tuple[str, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Mount:
        """``src:dst[:ro]``, as ``train.config.job_checks`` has checked it."""
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

    Data and models are only read: mounting those is the user's to say (``launcher.container.paths``
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
