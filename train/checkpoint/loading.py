"""Loading: newest checkpoint first, verified by all ranks together, older ones as a fallback.

Checkpoints that a rollback undid: made by an earlier attempt after the trouble had begun.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import nn

from submitrain.errors import CheckpointError
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
    AgreedError,
    Agreement,
    StoredTensors,
    read_scalars,
)
from submitrain.train.checkpoint.tensors import (
    Scalars,
    adapter_only,
    model_tensors,
    prepare_optimizer,
)


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


Reject = Callable[[Path, str], None]
"""Called with a checkpoint's path and the reason why it is not used; on every rank alike."""


@dataclass(frozen=True)
class Loaded:
    """The checkpoint that was loaded."""

    path: Path
    manifest: Manifest


def load_newest(
    root: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    configured: Sequence[Scalars],
    agreement: Agreement,
    reject: Reject,
    undone: Collection[Path] = (),
) -> Loaded | None:
    """Load the newest checkpoint in ``root`` that verifies; None if there is no checkpoint at all.

    ``undone`` ones are as if they were not there: a rollback undid what they hold. ``configured``
    are the optimizer's group values that hold where the checkpoint has none.

    Raises:
        CheckpointError: none verifies, or the verified one does not fit model or optimizer.
    """
    names = agreement.on_rank0(
        lambda: [path.name for path in list_checkpoints(root) if path not in undone]
    )
    for name in reversed(names):
        path = root / name
        manifest, problems = verify_together(path, agreement)
        if manifest is None or problems:
            reject(path, "; ".join(problems))
            continue
        try:
            fill = partial(restore, path, manifest, model, optimizer, configured)
            mismatches = agreement.together(fill)
        except AgreedError as error:
            reject(path, f"verified, but reading it failed: {error}")
            continue
        if any(mismatches):
            raise CheckpointError(f"{path} does not fit: {next(filter(None, mismatches))}")
        return Loaded(path, manifest)
    if names:
        raise none_is_whole(root, names)
    return None


def none_is_whole(root: Path, names: Sequence[str]) -> CheckpointError:
    """What to say when there are checkpoints and none verifies."""
    return CheckpointError(
        f"{root}: {len(names)} checkpoints, none of them whole: {', '.join(names)}; "
        "the reasons are in the checkpoint_rejected events. Restore one of them from a copy, "
        "or move them away to start from step 0"
    )


def verify_together(path: Path, agreement: Agreement) -> tuple[Manifest | None, list[str]]:
    """Manifest and problems of a checkpoint; every rank hashes a share of the files."""
    try:
        manifest = agreement.on_rank0(lambda: Manifest.read(path))
    except AgreedError as error:
        return None, [f"{MANIFEST}: {error}"]
    by_size = sorted(manifest.files.items(), key=lambda item: (-item[1].size, item[0]))
    mine = by_size[agreement.rank :: agreement.world_size]
    problems: list[str] = []
    for name, record in mine:
        problems += verify_file(path, name, record, contents=True)
    if agreement.rank == 0:
        try:
            problems += stray_files(path, manifest)
        except OSError as error:
            problems.append(f"cannot be listed: {error}")
    return manifest, [problem for share in agreement.gather(problems) for problem in share]


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
    if problem := _kind_mismatch(manifest, model):
        return problem
    weights = StoredTensors(path / MODEL, safetensors=manifest.model_format == "safetensors")
    targets = model_tensors(model)
    if problem := _name_mismatch(set(targets), weights.names):
        return problem
    moments = StoredTensors(path / OPTIMIZER, safetensors=False)
    scalars = read_scalars(path / OPTIMIZER)
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


def _kind_mismatch(manifest: Manifest, model: nn.Module) -> str:
    if manifest.adapter_only == adapter_only(model):
        return ""
    kinds = {True: "a LoRA adapter only", False: "the whole model"}
    return (
        f"it holds {kinds[manifest.adapter_only]}, this configuration trains "
        f"{kinds[not manifest.adapter_only]}: was peft switched? start a new run for that"
    )


def _name_mismatch(here: set[str], there: set[str]) -> str:
    if here == there:
        return ""
    lines = [
        f"{len(names)} tensors only {side} ({', '.join(sorted(names)[:3])})"
        for side, names in (("in the checkpoint", there - here), ("in the model", here - there))
        if names
    ]
    return f"{', '.join(lines)}: was the model's configuration changed? start a new run for that"
