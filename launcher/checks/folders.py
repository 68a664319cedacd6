"""File systems of the folders that a training uses: judged, and read through a child process.

A shared file system is told by its type; proof is a file written on one node and read on another.
"""

from __future__ import annotations

import errno
import json
import os
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
_FULL = frozenset([errno.ENOSPC, errno.EDQUOT])
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
    found = []
    for line in text.splitlines():
        source, point, kind, *_ = [*line.split(), "", "", ""]
        if kind:
            found.append(Mount(_plain(point), kind, _plain(source)))
    return found


def _plain(text: str) -> str:
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text


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
    where, facts = _where(folder, found), found.facts
    other = f"set {folder.key} to another folder"
    if found.hung_s is not None:
        step = "fsync or write" if "free_bytes" in facts else "stat"
        said = f"{where}: {step} did not return within {found.hung_s:g} s"
        return fail(folder.id, said, f"the file system hangs on this host: tell the site; {other}")
    if "error" in facts:
        return fail(
            folder.id, f"{where}: writing fails: {facts['error']}", _unwritable(facts, other)
        )
    if "fsync_s" not in facts:
        return unknown(folder.id, f"{where}: the probe did not say", "try to write there by hand")
    evidence = f"{where}, {_space(facts)}, fsync of 1 MiB {facts['fsync_s'] * 1e3:.0f} ms"
    if facts["free_bytes"] < LEAST_BYTES or facts["free_inodes"] == 0 < facts["total_inodes"]:
        return fail(folder.id, evidence, f"no checkpoint fits: make room, or {other}")
    if trouble := _trouble(found, on_nodes, other):
        return warn(folder.id, evidence, "; ".join(trouble))
    kind = found.mount.type if found.mount else "unknown"
    if on_nodes and is_shared(kind) is None:
        proof = f"`touch {found.path}/x; srun -N2 ls {found.path}/x` shows whether nodes share it"
        return unknown(folder.id, f"{evidence}; whether {kind} is shared is not known", proof)
    return ok(folder.id, evidence)


def _unwritable(facts: Mapping[str, Any], other: str) -> str:
    if facts.get("errno") in _FULL:
        return f"the file system or your quota is full: make room, or {other}"
    return f"ask for write access, or {other}"


def _trouble(found: FolderFacts, on_nodes: bool, other: str) -> list[str]:
    facts, trouble = found.facts, []
    if on_nodes and found.mount is not None and is_shared(found.mount.type) is False:
        trouble.append(
            f"{found.mount.type} is local to one machine: compute nodes do not see it, unless "
            f"this host exports it or is the only one; {other} on a shared file system"
        )
    if facts["free_bytes"] < max(LOW_BYTES, LOW_SHARE * facts["total_bytes"]):
        trouble.append("little space is left for checkpoints: make room, or keep fewer of them")
    if facts["total_inodes"] and facts["free_inodes"] < LOW_INODES:
        trouble.append("few inodes are left: remove small files")
    if facts["fsync_s"] > SLOW_FSYNC_S:
        trouble.append("fsync is slow: events and checkpoints will wait for it")
    return trouble


def _where(folder: Folder, found: FolderFacts) -> str:
    mount = found.mount
    kind = f" on {mount.type} ({mount.point})" if mount else ""
    missing = f" (for {folder.path}, not there yet)" if found.facts.get("exists") is False else ""
    return f"{found.path}{missing}{kind}"


def _space(facts: Mapping[str, Any]) -> str:
    share = facts["free_bytes"] / facts["total_bytes"] if facts["total_bytes"] else 0.0
    inodes = f", {facts['free_inodes']} inodes" if facts["total_inodes"] else ""
    return f"{facts['free_bytes'] / 2**30:.1f} GiB free ({share:.0%}){inodes}"


def read_mounts() -> str:
    """The kernel's list of mounts; reading it touches none of them."""
    return Path("/proc/self/mounts").read_text(errors="replace")


def read_folder(
    path: Path, *, limit_s: float, program: Sequence[str] = (sys.executable, "-I", probe.__file__)
) -> FolderFacts:
    """Ask a child process to look at ``path``; it is left behind when it does not answer.

    The path is only spelled out here, never touched: a mount that hangs would hang this process.
    """
    mounts = parse_mounts(read_mounts())
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
        _leave(child)
    facts = _facts(told)
    real = str(facts.get("path", absolute))
    return FolderFacts(real, mount_of(real, mounts), facts, hung_s)


def _facts(told: bytes) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in told.splitlines():
        with suppress(ValueError):
            facts |= json.loads(line)
    return facts


_LEFT: list[subprocess.Popen[bytes]] = []
"""Children that not even SIGKILL ended yet: they sleep in the kernel, on a file system."""


def _leave(child: subprocess.Popen[bytes]) -> None:
    child.kill()
    if child.stdout is not None:
        child.stdout.close()
    try:
        child.wait(_REAP_S)
    except subprocess.TimeoutExpired:
        _LEFT.append(child)
