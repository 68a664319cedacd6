"""Writing one checkpoint, from tensors that nobody changes to a published folder; one thread.

Every rank writes, flushes and hashes its files into a temporary folder; all agree that everyone
succeeded; rank 0 seals it with the manifest, renames it into place (this commits it), moves
``latest`` and prunes. Dying at any moment leaves the previous checkpoints as they were.
"""

from __future__ import annotations

import json
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
    SCALARS,
    RankGroup,
    StoredTensors,
    files_of_rank,
    record_files,
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
class SaveTask:
    """One save: where it goes and what is recorded about it."""

    folders: CheckpointFolders
    context: RankContext
    settings: CheckpointConfig
    config_hash: str
    state: TrainState
    started: float
    """Monotonic seconds."""
    rejected: frozenset[Path]
    """Checkpoints that failed verification."""
    model_format: str
    adapter_only: bool = False
    blocked_s: float | None = None
    """How long training was blocked; None: until the save is over."""

    @property
    def target(self) -> Path:
        """Where it will be published."""
        return self.folders.published(self.state.step)

    @property
    def temporary(self) -> Path:
        """Where it is written."""
        return self.folders.temporary(self.state.step)

    def begin(self, *, any_state: bool = False) -> Published | None:
        """Make the temporary folder, unless there is a reason not to write; rank 0 does this.

        Such as a whole checkpoint of this very state (``any_state``: step) that is there already.
        """
        if self.context.fenced():
            return Published.FENCED
        is_whole = self.target.exists() and not verify(self.target)
        if is_whole and (any_state or Manifest.read(self.target).state == self.state):
            fsync_dir(self.folders.root)  # whoever published it may not have come to that
            self._point_latest()
            return Published.EXISTED
        self.folders.begin(self.state.step)
        return None

    def publish(self, files: Mapping[str, FileRecord]) -> Published:
        """Seal the temporary folder and make it the newest checkpoint; rank 0 does this."""
        manifest = Manifest(
            state=self.state,
            attempt=self.context.attempt,
            world_size=self.context.world_size,
            config_hash=self.config_hash,
            model_format=self.model_format,
            adapter_only=self.adapter_only,
            created_at=round(time.time(), 3),
            files=files,
        )
        step = self.state.step
        self.folders.seal(self.temporary, manifest.text())
        faults.at(faults.Moment.PUBLISH, step=step)
        try:
            self.folders.publish(step)
        except FencedError:
            self.folders.discard(step)
            return Published.FENCED
        faults.at(faults.Moment.LATEST, step=step)
        self._point_latest()
        total_s = time.monotonic() - self.started
        self.context.events.write(
            Kind.CHECKPOINT,
            step=step,
            path=str(self.target),
            bytes=manifest.total_bytes,
            blocked_s=round(total_s if self.blocked_s is None else self.blocked_s, 3),
            save_s=round(total_s, 3),
        )
        self._prune()
        return Published.NEW

    def record_failure(self, problem: str) -> None:
        """Record, on rank 0, that nothing was published; the temporary folder goes."""
        if self.context.rank != 0:
            return
        self.folders.discard(self.state.step)
        self.context.events.write(
            Kind.CHECKPOINT_FAILED, step=self.state.step, path=str(self.target), reason=problem
        )
        log.warning(
            "checkpoint_failed",
            attempt=self.context.attempt,
            path=str(self.target),
            reason=problem,
        )

    def fenced_error(self) -> FencedError:
        """Why this attempt has to end."""
        return FencedError(
            f"attempt {self.context.attempt} may not publish {self.target}: attempt "
            f"{self.context.run_dir.newest_attempt()} owns the run folder now; this one ends"
        )

    def _point_latest(self) -> None:
        """Move the link for people; one that cannot be moved does not make the save a failure."""
        try:
            self.folders.point_latest(self.target)
        except OSError as error:
            log.warning("latest_not_moved", path=str(self.target), reason=str(error))

    def _prune(self) -> None:
        """Delete what is spare; one that cannot be deleted does not make the save a failure."""
        if problems := verify(self.target, contents=False):
            log.warning("checkpoint_not_pruned", path=str(self.target), reason="; ".join(problems))
            return
        try:
            self.folders.prune(
                self.settings.keep_last_n_checkpoints,
                verified=self.target,
                rejected=self.rejected,
                suspect=AnomalyHistory.of(self.state.extra).first_suspect,
            )
        except (OSError, FencedError) as error:
            log.warning("checkpoint_not_pruned", path=str(self.folders.root), reason=str(error))


@dataclass(frozen=True)
class Snapshot:
    """What is written: this rank's share, which nobody changes until the save is over."""

    model: Mapping[str, torch.Tensor]
    optimizer: Mapping[str, torch.Tensor]
    scalars: Scalars
    layout: Layout | None
    """How the folder for ``from_pretrained`` looks, if the checkpoint shall have one."""


def write_checkpoint(task: SaveTask, snapshot: Snapshot, ranks: RankGroup) -> Published:
    """Write, agree, seal and publish; every rank of the group calls it.

    Raises:
        RankError: some rank failed; nothing was published, training may go on.
    """
    refusal = ranks.on_rank0(task.begin)
    task.context.mark_save()
    if refusal is not None:
        return refusal
    shares = ranks.together(lambda: _write_share(task, snapshot, ranks))
    task.context.mark_save()
    return ranks.on_rank0(lambda: _publish_shares(task, snapshot, shares))


def _write_share(task: SaveTask, snapshot: Snapshot, ranks: RankGroup) -> dict[str, FileRecord]:
    """Write, flush and hash this rank's files."""
    assert ranks.group is not None
    _expect_finite({**snapshot.model, **snapshot.optimizer})
    folder, mark = task.temporary, task.context.mark_save
    in_safetensors = task.model_format == "safetensors"
    write_tensors(folder / MODEL, snapshot.model, safetensors=in_safetensors, group=ranks.group)
    faults.at(faults.Moment.SAVE, step=task.state.step)
    mark()
    write_tensors(folder / OPTIMIZER, snapshot.optimizer, safetensors=False, group=ranks.group)
    mark()
    if ranks.rank == 0:
        (folder / OPTIMIZER / SCALARS).write_text(json.dumps(snapshot.scalars))
    records = record_files(folder, files_of_rank(folder, ranks.rank))
    mark()
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


def _publish_shares(
    task: SaveTask, snapshot: Snapshot, shares: list[dict[str, FileRecord]]
) -> Published:
    """Publish all ranks' files; the folder that ``from_pretrained`` reads is made of them first."""
    files = {name: record for share in shares for name, record in share.items()}
    if snapshot.layout is not None:
        in_safetensors = task.model_format == "safetensors"
        stored = StoredTensors(task.temporary / MODEL, safetensors=in_safetensors)
        target = task.temporary / PRETRAINED
        target.mkdir()
        snapshot.layout.write(target, stored.read_whole)
        paths = sorted(path for path in target.rglob("*") if path.is_file())
        files |= record_files(task.temporary, paths)
    return task.publish(files)
