"""Checkpoints on disk: names, publishing by rename, pruning. One rank calls this. Imports no torch.

step-00000500/            published: whole, hashed, never written into again
step-00000600.tmp-3/      attempt 3 is writing it
step-00000500.old-3/      attempt 3 has taken it out of use and is deleting it
step-00000500.undone-3/   a rollback undid it; gone once a newer one is published
latest -> step-00000500   for people; loading looks at the folders themselves
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from train.checkpoint.manifest import MANIFEST, list_checkpoints, step_of, verify
from train.rundir import fsync_dir, write_text_atomically

_SCRATCH = re.compile(r"step-\d{8,}\.(tmp|old|undone)-(\d+)")


@dataclass(frozen=True)
class CheckpointFolders:
    """The checkpoints of one run as one attempt sees them."""

    root: Path
    attempt: int

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
            OSError: it could not be renamed.
        """
        target = self.published(step)
        if target.exists():
            self._retire(target)
        self.temporary(step).rename(target)
        fsync_dir(self.root)
        return target

    def point_latest(self, checkpoint: Path) -> None:
        """Let ``latest`` point to ``checkpoint``, atomically."""
        link = self.root / f".latest-{self.attempt}"
        link.unlink(missing_ok=True)
        link.symlink_to(checkpoint.name)
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
            self._retire(path)
        self.remove_scratch()
        for path, kind, _ in self._scratch():
            if kind == "undone":
                shutil.rmtree(path, ignore_errors=True)
        return spare

    def remove_scratch(self) -> None:
        """Delete temporary folders of older attempts and half-deleted checkpoints of this one."""
        for path, kind, attempt in self._scratch():
            if kind == "undone":
                continue
            if attempt < self.attempt or (kind == "old" and attempt == self.attempt):
                shutil.rmtree(path, ignore_errors=True)

    def _scratch(self) -> Iterator[tuple[Path, str, int]]:
        for path in list(self.root.iterdir()):
            if match := _SCRATCH.fullmatch(path.name):
                yield path, match.group(1), int(match.group(2))

    def _retire(self, path: Path) -> None:
        """Take a checkpoint out of use by a rename, so that a crash leaves no half of one."""
        retired = path.with_name(f"{path.name}.old-{self.attempt}")
        shutil.rmtree(retired, ignore_errors=True)
        path.rename(retired)
        fsync_dir(self.root)


def fsync_file(path: Path) -> None:
    """Flush one file's content to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
