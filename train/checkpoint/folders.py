"""Checkpoints on disk: names, publishing by rename, pruning. One rank calls this. Imports no torch.

step-00000500/            published: whole, hashed, never written into again
step-00000600.tmp-3/      attempt 3 is writing it
step-00000500.old-3/      attempt 3 has taken it out of use and is deleting it
step-00000500.undone-3/   a rollback undid it; gone once a newer one is published
latest -> step-00000500   for people; loading lists the folders themselves

What a fenced attempt may still do here, at whatever instruction it went on: see
``submitrain.fence``.
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from submitrain.fence import Fence
from submitrain.run_folder import fsync_dir, write_text_atomically
from submitrain.train.checkpoint.manifest import MANIFEST, list_checkpoints, step_of, verify

_SCRATCH = re.compile(r"step-\d{8,}\.(tmp|old|undone)-(\d+)")


@dataclass(frozen=True)
class CheckpointFolders:
    """The checkpoints of one run as one attempt sees them."""

    root: Path
    fence: Fence = field(default_factory=Fence)

    @property
    def attempt(self) -> int:
        """The attempt whose number is in the names of unfinished folders."""
        return self.fence.attempt

    @property
    def latest(self) -> Path:
        """Link to the checkpoint that was published last."""
        return self.root / "latest"

    def published(self, step: int) -> Path:
        """Folder of a published checkpoint."""
        return self.root / f"step-{step:08d}"

    def temporary(self, step: int) -> Path:
        """Folder that this attempt writes a checkpoint into."""
        return self.root / f"step-{step:08d}.tmp-{self.attempt}"

    def revoke(self) -> None:
        """Rename older attempts' unfinished folders away, so that none is published any more.

        Before looking for the checkpoint to load: an older attempt that was not fenced when it
        asked has either published by now, and is seen, or its rename finds nothing.

        Raises:
            OSError: one of them could not be renamed.
        """
        for path, kind, attempt in self._scratch():
            if kind == "tmp" and attempt < self.attempt:
                with suppress(FileNotFoundError):
                    path.rename(self._free_name(path))

    def begin(self, step: int) -> Path:
        """Make an empty temporary folder; what dead attempts left behind goes first."""
        self.root.mkdir(parents=True, exist_ok=True)
        self.remove_scratch()
        folder = self.temporary(step)
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        return folder

    def seal(self, folder: Path, manifest_text: str) -> None:
        """Write the manifest and make every name in ``folder`` durable.

        Raises:
            OSError: disk full, read-only, ...
        """
        write_text_atomically(folder / MANIFEST, manifest_text)
        for path in (*(entry for entry in folder.rglob("*") if entry.is_dir()), folder):
            fsync_dir(path)

    def publish(self, step: int) -> Path:
        """Rename the sealed temporary folder into place; a bad one of that step makes room.

        rename(2) refuses a target that is a folder with files in it, so nothing is ever written
        into a checkpoint that exists.

        Raises:
            OSError: it could not be renamed; one that made room is back.
            FencedError: a newer attempt owns the run folder; nothing was published.
        """
        target = self.published(step)
        with self.fence.moved_aside(target, self._free_name(target)):
            try:
                self.temporary(step).rename(target)
            except FileNotFoundError:
                self.fence.check(f"publish {target}")
                raise
        fsync_dir(self.root)
        return target

    def point_latest(self, checkpoint: Path) -> None:
        """Let ``latest`` point to ``checkpoint``, or to the newest one if fenced meanwhile."""
        if self.fence.closed():
            return
        self._link(checkpoint.name)
        if self.fence.closed():
            self._link(list_checkpoints(self.root)[-1].name)

    def _link(self, name: str) -> None:
        link = self.root / f".latest-{self.attempt}"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        link.replace(self.latest)
        fsync_dir(self.root)

    def discard(self, step: int) -> None:
        """Remove this attempt's temporary folder of ``step``, as far as the disk lets us."""
        shutil.rmtree(self.temporary(step), ignore_errors=True)

    def undo(self, path: Path) -> None:
        """Take a checkpoint out of use that a rollback undid; ``prune`` deletes it later.

        Raises:
            OSError: it could not be renamed.
        """
        path.rename(path.with_name(f"{path.name}.undone-{self.attempt}"))
        fsync_dir(self.root)

    def prune(
        self,
        keep: int,
        *,
        verified: Path,
        rejected: Collection[Path],
        suspect: int | None = None,
    ) -> list[Path]:
        """Delete all but the ``keep`` newest healthy checkpoints; returns what was deleted.

        ``verified`` was verified in full just now and always stays. ``rejected`` ones failed
        verification and count for nothing; they go once a newer one is verified. The others are
        compared by presence and size here, which is enough to decide what is spare. The newest one
        from before step ``suspect`` stays, too: a rollback would need it.
        """
        checkpoints = list_checkpoints(self.root)
        healthy = [
            path
            for path in checkpoints
            if path == verified or (path not in rejected and not verify(path, contents=False))
        ]
        kept = {verified, *healthy[-keep:]}
        newest = step_of(verified) or 0
        if suspect is not None:
            kept |= set([path for path in healthy if (step_of(path) or 0) < suspect][-1:])
        spare = [path for path in checkpoints if path not in kept and (step_of(path) or 0) < newest]
        for path in spare:
            with self.fence.moved_aside(path, self._free_name(path)):
                fsync_dir(self.root)
        self.remove_scratch()
        for path, kind, _ in self._scratch():
            if kind == "undone":
                shutil.rmtree(path, ignore_errors=True)
        return spare

    def remove_scratch(self) -> None:
        """Delete what older attempts left unfinished, and half-deleted checkpoints of this one."""
        for path, kind, attempt in self._scratch():
            if kind == "undone":
                continue
            if attempt < self.attempt or (kind == "old" and attempt == self.attempt):
                shutil.rmtree(path, ignore_errors=True)
        for link in list(self.root.glob(".latest-*")):
            number = link.name.rpartition("-")[2]
            if number.isdigit() and int(number) < self.attempt:
                link.unlink(missing_ok=True)

    def _scratch(self) -> Iterator[tuple[Path, str, int]]:
        for path in list(self.root.iterdir()):
            if match := _SCRATCH.fullmatch(path.name):
                yield path, match.group(1), int(match.group(2))

    def _free_name(self, path: Path) -> Path:
        """Where to rename a folder that goes: a crash then leaves no half of a checkpoint."""
        step = path.name.partition(".")[0]
        retired = path.with_name(f"{step}.old-{self.attempt}")
        shutil.rmtree(retired, ignore_errors=True)
        return retired


def fsync_file(path: Path) -> None:
    """Flush one file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
