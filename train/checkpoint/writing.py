"""Writing one checkpoint, from tensors that nobody changes to a published folder; one thread."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import structlog
import torch
from torch.distributed.tensor import DTensor

from submitrain.config.sections import CheckpointConfig
from submitrain.errors import CheckpointError, FencedError
from submitrain.events import Kind
from submitrain.run_folder import fsync_dir
from submitrain.train import faults
from submitrain.train.callbacks.anomaly import AnomalyHistory
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.hf_weights import Layout
from submitrain.train.checkpoint.manifest import FileRecord, Manifest, TrainState, verify
from submitrain.train.checkpoint.storage import (
    MODEL,
    OPTIMIZER,
    AgreedError,
    Agreement,
    StoredTensors,
    record_files,
    record_own_files,
    write_scalars,
    write_tensors,
)
from submitrain.train.checkpoint.tensors import Scalars
from submitrain.train.context import RankContext

log = structlog.get_logger()

PRETRAINED = "pretrained"


class Published(Enum):
    """How a save ended that did not fail."""

    NEW = "written and published"
    EXISTED = "the very same one was already there"
    FENCED = "refused: a newer attempt owns the run folder"


@dataclass(frozen=True)
class Snapshot:
    """What is written: this rank's share, which nobody changes until the save is over."""

    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    scalars: Scalars
    adapter_only: bool
    layout: Layout | None
    """How the folder for ``from_pretrained`` looks, if the checkpoint shall have one."""


@dataclass(frozen=True)
class SaveTask:
    """One save: where it goes and what is recorded about it."""

    folders: CheckpointFolders
    context: RankContext
    settings: CheckpointConfig
    config_hash: str
    state: TrainState
    started: float
    """Monotonic seconds."""
    blocked_s: float | None
    """How long training was blocked; None: until the save is over."""
    rejected: frozenset[Path]
    """Checkpoints that failed verification."""

    @property
    def target(self) -> Path:
        """Where it will be published."""
        return self.folders.published(self.state.step)

    @property
    def safetensors(self) -> bool:
        """Whether model weights go into safetensors files."""
        return self.settings.model_save_format == "safetensors"


def write_checkpoint(task: SaveTask, snapshot: Snapshot, agreement: Agreement) -> Published:
    """Write, agree, seal and publish; every rank of the group calls it.

    Raises:
        AgreedError: some rank failed; the temporary folder is gone, training may go on.
    """
    refusal = agreement.on_rank0(lambda: _begin(task))
    task.context.mark_save()
    if refusal is not None:
        return refusal
    try:
        shares = agreement.together(lambda: _write_share(task, snapshot, agreement))
        task.context.mark_save()
        return agreement.on_rank0(lambda: _finish(task, snapshot, shares))
    except AgreedError:
        if agreement.rank == 0:
            task.folders.discard(task.state.step)
        raise


def _begin(task: SaveTask) -> Published | None:
    """Make the temporary folder, unless there is a reason not to write."""
    if task.context.fenced():
        return Published.FENCED
    if _is_there(task):
        fsync_dir(task.folders.root)  # whoever published it may not have come to that
        _point_latest(task, task.target)
        return Published.EXISTED
    task.folders.begin(task.state.step)
    return None


def _is_there(task: SaveTask) -> bool:
    """Whether a whole checkpoint of this very state is published already."""
    return (
        task.target.exists()
        and not verify(task.target)
        and Manifest.read(task.target).state == task.state
    )


def _write_share(task: SaveTask, snapshot: Snapshot, agreement: Agreement) -> dict[str, FileRecord]:
    """Write, flush and hash this rank's files."""
    assert agreement.group is not None
    _expect_finite({**snapshot.model, **snapshot.optimizer})
    folder = task.folders.temporary(task.state.step)
    write_tensors(
        folder / MODEL, snapshot.model, safetensors=task.safetensors, group=agreement.group
    )
    faults.at(faults.Moment.SAVE, step=task.state.step)
    task.context.mark_save()
    write_tensors(folder / OPTIMIZER, snapshot.optimizer, safetensors=False, group=agreement.group)
    task.context.mark_save()
    if agreement.rank == 0:
        write_scalars(folder / OPTIMIZER, snapshot.scalars)
    records = record_own_files(folder, agreement.rank)
    task.context.mark_save()
    return records


def _expect_finite(tensors: Mapping[str, torch.Tensor]) -> None:
    """A checkpoint is what a rollback trusts: no NaN and no infinity may get into one.

    Reads this rank's shards once, in the saving thread; hashing them takes longer.

    Raises:
        CheckpointError: it names a tensor with such a value.
    """
    for name, tensor in tensors.items():
        local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        if local.is_floating_point() and not bool(torch.isfinite(local.sum(dtype=torch.float64))):
            raise CheckpointError(
                f"{name} is not finite: the last update broke it; lower optimizer.lr, lengthen "
                "the warm-up or clip gradients"
            )


def _finish(task: SaveTask, snapshot: Snapshot, shares: list[dict[str, FileRecord]]) -> Published:
    """Seal the folder and publish it, if this attempt still may; rank 0 does this."""
    folder = task.folders.temporary(task.state.step)
    files = {name: record for share in shares for name, record in share.items()}
    if snapshot.layout is not None:
        files |= _write_pretrained(folder, snapshot.layout, safetensors=task.safetensors)
    manifest = Manifest(
        state=task.state,
        attempt=task.context.attempt,
        world_size=len(shares),
        config_hash=task.config_hash,
        model_format=task.settings.model_save_format,
        adapter_only=snapshot.adapter_only,
        created_at=round(time.time(), 3),
        files=files,
    )
    return seal_and_publish(task, manifest)


def seal_and_publish(task: SaveTask, manifest: Manifest) -> Published:
    """Make the temporary folder with its written files the newest checkpoint; rank 0 does this."""
    folder = task.folders.temporary(task.state.step)
    task.folders.seal(folder, manifest.text())
    faults.at(faults.Moment.PUBLISH, step=task.state.step)
    try:
        path = task.folders.publish(task.state.step)
    except FencedError:
        task.folders.discard(task.state.step)
        return Published.FENCED
    faults.at(faults.Moment.LATEST, step=task.state.step)
    _point_latest(task, path)
    _report(task, manifest)
    _prune(task, path)
    return Published.NEW


def _point_latest(task: SaveTask, path: Path) -> None:
    """Move the link for people; one that cannot be moved does not make the save a failure."""
    try:
        task.folders.point_latest(path)
    except OSError as error:
        log.warning("latest_not_moved", path=str(path), reason=str(error))


def _prune(task: SaveTask, verified: Path) -> None:
    """Delete what is spare; one that cannot be deleted does not make the save a failure."""
    if problems := verify(verified, contents=False):
        log.warning("checkpoint_not_pruned", path=str(verified), reason="; ".join(problems))
        return
    keep = task.settings.keep_last_n_checkpoints
    try:
        suspect = AnomalyHistory.of(task.state.extra).first_suspect
        task.folders.prune(keep, verified=verified, rejected=task.rejected, suspect=suspect)
    except (OSError, FencedError) as error:
        log.warning("checkpoint_not_pruned", path=str(task.folders.root), reason=str(error))


def _write_pretrained(folder: Path, layout: Layout, *, safetensors: bool) -> dict[str, FileRecord]:
    """Add the folder that ``from_pretrained`` reads, tensor by tensor from what was written."""
    stored = StoredTensors(folder / MODEL, safetensors=safetensors)
    target = folder / PRETRAINED
    target.mkdir()

    def fetch(name: str) -> torch.Tensor:
        tensor = torch.empty(stored.shape(name), dtype=stored.dtype(name))
        stored.read({name: tensor})
        return tensor

    layout.write(target, fetch)
    return record_files(folder, sorted(path for path in target.rglob("*") if path.is_file()))


def _report(task: SaveTask, manifest: Manifest) -> None:
    total_s = time.monotonic() - task.started
    task.context.events.write(
        Kind.CHECKPOINT,
        step=task.state.step,
        path=str(task.target),
        bytes=manifest.total_bytes,
        blocked_s=round(total_s if task.blocked_s is None else task.blocked_s, 3),
        save_s=round(total_s, 3),
    )
