"""Checkpoints that a rollback undid: made by an earlier attempt after the trouble had begun."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from train.checkpoint.agreement import Agreement
from train.checkpoint.folders import CheckpointFolders
from train.checkpoint.manifest import Manifest, list_checkpoints, step_of
from train.rollback import read_rollbacks
from train.rundir import RunDir


def undone_checkpoints(
    folders: CheckpointFolders, run_dir: RunDir, agreement: Agreement
) -> dict[Path, str]:
    """Checkpoints that may not be used any more, and why; the same on every rank.

    Rank 0 also moves them aside, so that people and ``latest`` see only sound ones; one that cannot
    be moved (read-only folder) is not used all the same.

    Raises:
        AgreedError: rank 0 could not read the run folder.
    """
    return agreement.on_rank0(lambda: _move_aside(folders, run_dir))


def _move_aside(folders: CheckpointFolders, run_dir: RunDir) -> dict[Path, str]:
    undone = find_undone(folders.root, run_dir)
    for path in undone:
        with suppress(OSError):
            folders.undo(path)
    sound = [path for path in list_checkpoints(folders.root) if path not in undone]
    if undone:
        with suppress(OSError):
            folders.latest.unlink(missing_ok=True)
            if sound:
                folders.point_latest(sound[-1])
    return undone


def find_undone(root: Path, run_dir: RunDir) -> dict[Path, str]:
    """Published checkpoints that a rollback undid, and why."""
    undone = {}
    rollbacks = read_rollbacks(run_dir)
    for path in list_checkpoints(root) if rollbacks else []:
        attempt, step = _made_by(path), step_of(path) or 0
        for rollback in rollbacks:
            if attempt is not None and rollback.rejects(step=step, attempt=attempt):
                undone[path] = (
                    f"undone: attempt {rollback.attempt} went back to before step "
                    f"{rollback.first_step} ({rollback.what})"
                )
    return undone


def _made_by(path: Path) -> int | None:
    """Attempt that made a checkpoint; None when it does not say (then it does not verify)."""
    try:
        return Manifest.read(path).attempt
    except (OSError, ValueError, KeyError):
        return None
