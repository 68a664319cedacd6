"""The folders that a run writes to: their file systems and free space, read by a child process.

A shared file system is told by its type; proof is a file written on one node and read on another.
Standard library only.
"""

from __future__ import annotations

import errno
import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.launcher.checks import folder_probe as probe
from submitrain.launcher.checks.finding import Finding, fail, ok, unknown, warn

_SHARED = (
    "nfs nfs4 lustre gpfs beegfs ceph cifs smb3 wekafs panfs afs 9p virtiofs orangefs pvfs2 ocfs2 "
    "gfs2 glusterfs fuse.glusterfs fuse.ceph fuse.ceph-fuse fuse.juicefs fuse.sshfs fuse.mfs"
)
_LOCAL = (
    "ext2 ext3 ext4 xfs btrfs zfs tmpfs ramfs overlay f2fs bcachefs squashfs iso9660 vfat devtmpfs "
    "proc sysfs fuse.overlayfs"
)
SHARED_TYPES = frozenset(_SHARED.split())
LOCAL_TYPES = frozenset(_LOCAL.split())
"""File systems of one machine, by their types in /proc/mounts; any other type is unknown."""

LEAST_BYTES = 1 << 30
LOW_BYTES = 20 << 30
LOW_SHARE = 0.05
LOW_INODES = 10_000
SLOW_FSYNC_S = 1.0
_REAP_S = 0.2


@dataclass(frozen=True)
class Mount:
    """One line of /proc/mounts."""

    point: str
    type: str
    source: str


@dataclass(frozen=True)
class Folder:
    """A folder's purpose (``folder.runs``), its path, and the configuration key that sets it."""

    id: str
    path: Path
    key: str


@dataclass(frozen=True)
class FolderFacts:
    """What the probe told; None for what it did not come to."""

    path: str
    mount: Mount | None
    facts: Mapping[str, Any]
    hung_s: float | None = None
    """Seconds after which the probe was given up; None when it ended."""


def parse_mounts(text: str) -> list[Mount]:
    """Mounts of /proc/mounts; octal escapes (a space is ``\\040``) are undone (fstab(5))."""

    def plain(word: str) -> str:
        return re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), word)

    rows = [line.split() for line in text.splitlines()]
    return [Mount(plain(row[1]), row[2], plain(row[0])) for row in rows if len(row) > 2]


def mount_of(path: str, mounts: Sequence[Mount]) -> Mount | None:
    """The mount a path lies in: the longest prefix, and of equal ones the last."""
    best = None
    for mount in mounts:
        inside = path == mount.point or path.startswith(mount.point.rstrip("/") + "/")
        if inside and (best is None or len(mount.point) >= len(best.point)):
            best = mount
    return best


def is_shared(kind: str) -> bool | None:
    """Whether all nodes see this type of file system; None where the type does not tell."""
    if kind in SHARED_TYPES:
        return True
    return False if kind in LOCAL_TYPES else None


def judge_folder(folder: Folder, found: FolderFacts, *, on_nodes: bool) -> Finding:
    """Judge one folder; ``on_nodes``: jobs on other machines have to see it, too."""
    mount, facts = found.mount, found.facts
    other = f"set {folder.key} to another folder"
    missing = f" (for {folder.path}, not there yet)" if facts.get("exists") is False else ""
    where = f"{found.path}{missing}" + (f" on {mount.type} ({mount.point})" if mount else "")
    if found.hung_s is not None:
        step = "fsync or write" if "free_bytes" in facts else "stat"
        said = f"{where}: {step} did not return within {found.hung_s:g} s"
        return fail(folder.id, said, f"the file system hangs on this host: tell the site; {other}")
    if "error" in facts:
        full = facts.get("errno") in (errno.ENOSPC, errno.EDQUOT)
        way = "the file system or your quota is full: make room" if full else "ask for write access"
        return fail(folder.id, f"{where}: writing fails: {facts['error']}", f"{way}, or {other}")
    if "fsync_s" not in facts:
        return unknown(folder.id, f"{where}: the probe did not say", "try to write there by hand")
    free, inodes = facts["free_bytes"], facts["free_inodes"]
    share = free / facts["total_bytes"] if facts["total_bytes"] else 0.0
    evidence = (
        f"{where}, {free / 2**30:.1f} GiB free ({share:.0%})"
        + (f", {inodes} inodes" if facts["total_inodes"] else "")
        + f", fsync of 1 MiB {facts['fsync_s'] * 1e3:.0f} ms"
    )
    if free < LEAST_BYTES or inodes == 0 < facts["total_inodes"]:
        return fail(folder.id, evidence, f"no checkpoint fits: make room, or {other}")
    trouble = []
    if on_nodes and mount is not None and is_shared(mount.type) is False:
        trouble.append(
            f"{mount.type} is local to one machine: compute nodes do not see it, unless "
            f"this host exports it or is the only one; {other} on a shared file system"
        )
    if free < max(LOW_BYTES, LOW_SHARE * facts["total_bytes"]):
        trouble.append("little space is left for checkpoints: make room, or keep fewer of them")
    if facts["total_inodes"] and inodes < LOW_INODES:
        trouble.append("few inodes are left: remove small files")
    if facts["fsync_s"] > SLOW_FSYNC_S:
        trouble.append("fsync is slow: events and checkpoints will wait for it")
    if trouble:
        return warn(folder.id, evidence, "; ".join(trouble))
    kind = mount.type if mount else "unknown"
    if on_nodes and is_shared(kind) is None:
        proof = f"`touch {found.path}/x; srun -N2 ls {found.path}/x` shows whether nodes share it"
        return unknown(folder.id, f"{evidence}; whether {kind} is shared is not known", proof)
    return ok(folder.id, evidence)


def read_mounts() -> list[Mount]:
    """This process's mounts; reading the kernel's list touches none of them."""
    return parse_mounts(Path("/proc/self/mounts").read_text(errors="replace"))


def read_folder(
    path: Path, *, limit_s: float, program: Sequence[str] = (sys.executable, "-I", probe.__file__)
) -> FolderFacts:
    """Ask a child process to look at ``path``; it is left behind when it does not answer.

    The path is only spelled out here, never touched: a mount that hangs would hang this process.
    """
    mounts = read_mounts()
    absolute = os.path.abspath(path)  # noqa: PTH100 - Path.resolve() would touch it
    child = subprocess.Popen(
        [*program, absolute],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    told, hung_s = b"", None
    try:
        told, _ = child.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired as error:
        told, hung_s = error.output or b"", limit_s
        _abandon(child)
    facts: dict[str, Any] = {}
    for line in told.splitlines():
        with suppress(ValueError):
            facts |= json.loads(line)
    real = str(facts.get("path", absolute))
    return FolderFacts(real, mount_of(real, mounts), facts, hung_s)


_ABANDONED: list[subprocess.Popen[bytes]] = []
"""Children that not even SIGKILL ended yet: they sleep in the kernel, on a file system."""


def _abandon(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    if child.stdout is not None:
        child.stdout.close()
    try:
        child.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        _ABANDONED.append(child)
