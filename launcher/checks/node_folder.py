"""Preflight: the run folder as a node sees it. Standard library only."""

from __future__ import annotations

import os
import time
from contextlib import suppress
from pathlib import Path

from submitrain.launcher.checks.finding import Check, Finding, Level, fail, ok, unknown, warn
from submitrain.launcher.checks.folder_probe import WRITTEN_BYTES, write_synced
from submitrain.launcher.checks.folders import mount_of, read_mounts
from submitrain.launcher.checks.node_request import NodeRequest

FOLDER_S = 15.0
"""Seconds for reading and writing in the shared folder."""
VISIBLE_S = 5.0
"""Seconds for a file of another node to become visible (NFS caches names)."""
GIB = 2**30
LEAST_DISK_BYTES = GIB
"""Where the size of a checkpoint is not known, less than this is worth a warning."""
LEAST_INODES = 1000
_MEND = "free space or mend the mount there; runs_dir must be writable on every node"
_SHARE = "put runs_dir on a file system that all nodes share"


def folder_checks(request: NodeRequest) -> list[Check]:
    """The checks of this file."""

    def late(said: str) -> Finding:
        return fail("node.folder", f"reading and writing {request.folder}: {said}", _MEND)

    return [
        Check("node.folder", lambda: shared_folder(request), FOLDER_S, when_late=late),
        Check("node.disk", lambda: read_disk(request), FOLDER_S),
    ]


def shared_folder(request: NodeRequest) -> Finding:
    """Written on one node and read on another; the first node looks for this node's file."""
    id, folder = "node.folder", Path(request.folder)
    if not request.written:
        return unknown(id, "the first node could not write its own file there")
    mount = mount_of(request.folder, read_mounts())
    where = f"{folder} ({mount.type if mount else 'unknown file system'})"
    own, text = token_file(folder, request.node), f"{request.token} {request.node}\n".encode()
    try:
        fsync_s = write_synced(own, text + bytes(WRITTEN_BYTES))
        os.truncate(own, len(text))
    except OSError as error:
        return fail(id, f"cannot write to {where}: {error.strerror or error}", _MEND)
    if missing := wait_for_token(token_file(folder, ""), request.token):
        told = f"{where} does not show what {request.asker} wrote: {missing}"
        return fail(id, told, _SHARE)
    return ok(id, f"{where}, 1 MiB flushed in {fsync_s * 1000:.0f} ms")


def seen_from_the_first_node(found: Finding, request: NodeRequest) -> Finding:
    """A node's ``node.folder``, once the first node has looked for what the node wrote."""
    if found.id != "node.folder" or found.level is not Level.OK:
        return found
    own = token_file(Path(request.folder), request.node)
    if wait_for_token(own, f"{request.token} {request.node}"):
        told = f"{request.asker} does not see what was written to {found.evidence}"
        return fail(found.id, told, _SHARE)
    return ok(found.id, f"{found.evidence}, seen both ways")


def token_file(folder: Path, node: str) -> Path:
    """The file that a node writes; ``""`` is the first node as the one who asks."""
    return folder / f"{node or 'asker'}.token"


def wait_for_token(path: Path, token: str) -> str:
    """Why a file does not come to hold ``token`` within ``VISIBLE_S``; empty when it does."""
    until = time.monotonic() + VISIBLE_S
    while True:
        with suppress(OSError):
            list(path.parent.iterdir())  # NFS: makes a cached "no such file" go away
        try:
            problem = "" if path.read_text().startswith(token) else "holds something else"
        except OSError as error:
            problem = error.strerror or str(error)
        if not problem or time.monotonic() > until:
            return problem
        time.sleep(0.1)


def read_disk(request: NodeRequest) -> Finding:
    """Ask the file system for its free space."""
    stat = os.statvfs(request.folder)
    inodes = stat.f_favail if stat.f_files else None
    return judge_disk(request, stat.f_bavail * stat.f_frsize, inodes)


def judge_disk(request: NodeRequest, free_bytes: int, free_inodes: int | None) -> Finding:
    """Room for two checkpoints: the last one goes only when the next one is there."""
    id, size = "node.disk", request.checkpoint_bytes
    if free_inodes is not None and free_inodes < LEAST_INODES:
        remedy = "remove files, or have the quota of files raised"
        return warn(id, f"{free_inodes} free inodes in {request.folder}", remedy)
    needed = 2 * size if size else LEAST_DISK_BYTES
    told = f"{free_bytes / GIB:.1f} GiB free in {request.folder}"
    if free_bytes < needed:
        what = "two checkpoints need" if size else "worth having"
        remedy = "free space, or keep fewer checkpoints (checkpoint.keep_last_n_checkpoints)"
        return warn(id, f"{told}; {what} {needed / GIB:.1f} GiB", remedy)
    return ok(id, told)
