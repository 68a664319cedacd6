"""Loading: the newest checkpoint first, verified by all ranks together, older ones as a fallback.

A checkpoint that a rollback undid (made by an earlier attempt after the trouble had begun) is as if
it were not there.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, MutableSet, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog
import torch
from torch import nn

from submitrain.errors import CheckpointError
from submitrain.events import Kind
from submitrain.rollbacks import read_rollbacks
from submitrain.run_folder import RunDir
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.manifest import (
    MANIFEST,
    Manifest,
    list_checkpoints,
    step_of,
    stray_files,
    verify_file,
)
from submitrain.train.checkpoint.storage import (
    MODEL,
    OPTIMIZER,
    SCALARS,
    RankError,
    RankGroup,
    StoredTensors,
)
from submitrain.train.checkpoint.tensors import (
    Scalars,
    adapter_only,
    model_tensors,
    prepare_optimizer,
)
from submitrain.train.context import RankContext

log = structlog.get_logger()


class CheckpointSearch:
    """Finds the newest checkpoint of a run that is whole; all ranks make the same calls."""

    def __init__(self, folders: CheckpointFolders, context: RankContext) -> None:
        self.folders, self.context = folders, context
        self.rejected: MutableSet[Path] = set()
        """Checkpoints that were found unusable, on every rank alike."""

    def newest_first(self, ranks: RankGroup) -> Iterator[tuple[Path, Manifest]]:
        """Whole checkpoints; the others are rejected, with an event and a warning for each.

        Raises:
            CheckpointError: there are checkpoints, and the caller took none of them.
        """
        root = self.folders.root
        names = ranks.on_rank0(self._revoke_and_list)
        undone = ranks.on_rank0(lambda: move_undone(self.folders, self.context.run_dir))
        for path, reason in undone.items():
            self.reject(path, reason)
        names = [name for name in names if root / name not in undone]
        for name in reversed(names):
            manifest, problems = verify_together(root / name, ranks)
            if manifest is None or problems:
                self.reject(root / name, "; ".join(problems))
            else:
                yield root / name, manifest
        if names:
            raise CheckpointError(
                f"{root}: {len(names)} checkpoints, none of them whole: {', '.join(names)}; "
                "the reasons are in the checkpoint_rejected events. Restore one of them from a "
                "copy, or move them away to start from step 0"
            )

    def reject(self, path: Path, reason: str) -> None:
        """Record that a checkpoint is not used."""
        self.rejected.add(path)
        if self.context.rank == 0:
            self.context.events.write(Kind.CHECKPOINT_REJECTED, path=str(path), reason=reason)
            log.warning(
                "checkpoint_rejected",
                attempt=self.context.attempt,
                path=str(path),
                reason=reason,
            )

    def _revoke_and_list(self) -> list[str]:
        """Published checkpoints; before they are listed, older attempts can publish no more."""
        root = self.folders.root
        try:
            if root.exists():
                self.folders.revoke()
        except OSError as error:
            # On a folder that cannot be written nobody publishes; reading may go on.
            log.warning(
                "older_attempts_not_revoked",
                attempt=self.context.attempt,
                path=str(root),
                why=str(error),
            )
        return [path.name for path in list_checkpoints(root)]


def move_undone(folders: CheckpointFolders, run_dir: RunDir) -> dict[Path, str]:
    """Take checkpoints out of use that a rollback undid; returns them, and why. Rank 0 does this.

    One that cannot be moved (read-only folder) is not used all the same.
    """
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
        try:
            attempt, step = Manifest.read(path).attempt, step_of(path) or 0
        except (OSError, ValueError, KeyError):
            continue  # it does not say who made it, so it does not verify either
        for rollback in rollbacks:
            if rollback.rejects(step=step, attempt=attempt):
                undone[path] = (
                    f"undone: attempt {rollback.attempt} went back to before step "
                    f"{rollback.first_step} ({rollback.what})"
                )
    return undone


def verify_together(path: Path, ranks: RankGroup) -> tuple[Manifest | None, list[str]]:
    """Manifest and problems of a checkpoint; every rank hashes a share of the files."""
    try:
        manifest = ranks.on_rank0(lambda: Manifest.read(path))
    except RankError as error:
        return None, [f"{MANIFEST}: {error}"]
    by_size = sorted(manifest.files.items(), key=lambda item: (-item[1].size, item[0]))
    problems: list[str] = []
    for name, record in by_size[ranks.rank :: ranks.world_size]:
        problems += verify_file(path, name, record, contents=True)
    if ranks.rank == 0:
        try:
            problems += stray_files(path, manifest)
        except OSError as error:
            problems.append(f"cannot be listed: {error}")
    return manifest, [problem for share in ranks.gather(problems) for problem in share]


def load_newest(
    search: CheckpointSearch,
    ranks: RankGroup,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    configured: Sequence[Scalars],
) -> tuple[Path, Manifest] | None:
    """Load the newest checkpoint that verifies, in place; None if there is no checkpoint at all.

    ``configured`` are the optimizer's group values that hold where the checkpoint has none.

    Raises:
        CheckpointError: none verifies, or the verified one does not fit model or optimizer.
    """
    for path, manifest in search.newest_first(ranks):
        try:
            mismatches = ranks.together(
                partial(restore, path, manifest, model, optimizer, configured)
            )
        except RankError as error:
            search.reject(path, f"verified, but reading it failed: {error}")
            continue
        if any(mismatches):
            raise CheckpointError(f"{path} does not fit: {next(filter(None, mismatches))}")
        return path, manifest
    return None


def restore(
    path: Path,
    manifest: Manifest,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    configured: Sequence[Scalars],
) -> str:
    """Fill model and optimizer in place from a verified checkpoint; returns why it does not fit.

    The optimizer comes first: getting its entries into shape may touch the parameters.

    Raises:
        OSError: a file cannot be read.
    """
    if manifest.adapter_only != adapter_only(model):
        kinds = {True: "a LoRA adapter only", False: "the whole model"}
        return (
            f"it holds {kinds[manifest.adapter_only]}, this configuration trains "
            f"{kinds[not manifest.adapter_only]}: was peft switched? start a new run for that"
        )
    weights = StoredTensors(path / MODEL, safetensors=manifest.model_format == "safetensors")
    targets = model_tensors(model)
    if problem := _name_mismatch(set(targets), weights.names):
        return problem
    moments = StoredTensors(path / OPTIMIZER, safetensors=False)
    scalars: Scalars = json.loads((path / OPTIMIZER / SCALARS).read_text())
    try:
        moments.read(
            prepare_optimizer(
                model, optimizer, tensor_names=moments.names, scalars=scalars, configured=configured
            )
        )
        weights.read(targets)
    except (CheckpointError, ValueError) as error:
        return str(error)
    return ""


def _name_mismatch(here: set[str], there: set[str]) -> str:
    if here == there:
        return ""
    lines = [
        f"{len(names)} tensors only {side} ({', '.join(sorted(names)[:3])})"
        for side, names in (("in the checkpoint", there - here), ("in the model", here - there))
        if names
    ]
    return f"{', '.join(lines)}: was the model's configuration changed? start a new run for that"
