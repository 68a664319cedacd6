"""Checkpoints of a training function of the user's own: it writes files, this makes them safe.

All ranks write into one temporary folder; all agree that everyone succeeded; each hashes a share of
the files; rank 0 seals the folder with the manifest and renames it into place, as for the built-in
recipe (``train.checkpoint``). Every method here is called by all ranks.

The other ranks of an attempt, for a training function of the user's own.

The function may form the process group by ``RunContext.init_process_group``, by torch's own
``init_process_group()`` or by accelerate's: the variables that torchrun would set are there, and
name the store that the ranks have met in already. No port is agreed on.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import structlog
import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from submitrain.config import RunConfig
from submitrain.config.sections import DistributedConfig
from submitrain.errors import FencedError, RunError
from submitrain.events import Kind
from submitrain.train import faults
from submitrain.train.checkpoint.folders import CheckpointFolders, fsync_file
from submitrain.train.checkpoint.loading import none_is_whole, verify_together
from submitrain.train.checkpoint.manifest import (
    MANIFEST,
    FileRecord,
    Json,
    Manifest,
    TrainState,
    digest_file,
    list_checkpoints,
    verify,
)
from submitrain.train.checkpoint.storage import AgreedError, Agreement
from submitrain.train.checkpoint.writing import Published, SaveTask, seal_and_publish
from submitrain.train.context import RankContext
from submitrain.train.distributed.groups import connect
from submitrain.train.user_function.context import Checkpoint


@dataclass
class Peers:
    """All ranks of this attempt as one of them sees them."""

    context: RankContext
    settings: DistributedConfig
    store: Store
    device: torch.device
    _control: dist.ProcessGroup | None = field(default=None, init=False)

    def publish_address(self) -> None:
        """Set the variables by which torch, accelerate and others find the process group.

        TORCHELASTIC_USE_AGENT_STORE makes torch join the store at MASTER_ADDR:MASTER_PORT instead
        of opening one there (torch.distributed.rendezvous, 2.13).
        """
        context = self.context
        os.environ |= {
            "RANK": str(context.rank),
            "WORLD_SIZE": str(context.world_size),
            "LOCAL_RANK": str(context.local_rank),
            "LOCAL_WORLD_SIZE": str(context.local_world_size),
            "MASTER_ADDR": str(self.store.host),  # type: ignore[attr-defined]
            "MASTER_PORT": str(self.store.port),  # type: ignore[attr-defined]
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }

    def connect(self) -> None:
        """Form the default process group, unless the function has done so already."""
        if not dist.is_initialized():
            connect(self.context, self.settings, self.store, self.device)

    @property
    def agreement(self) -> Agreement:
        """Collectives of a gloo group that nothing else uses; all ranks make it together."""
        if self.context.world_size == 1:
            return Agreement(None)
        if self._control is None:
            self.connect()
            timeout = timedelta(seconds=self.settings.timeout_s)
            self._control = dist.new_group(backend="gloo", timeout=timeout)
        return Agreement(self._control)

    def highest(self, *values: int) -> list[int]:
        """The highest of all ranks' values, place by place; the same on every rank."""
        group = self.agreement.group
        if group is None:
            return list(values)
        vote = torch.tensor(values, dtype=torch.int64)
        dist.all_reduce(vote, dist.ReduceOp.MAX, group=group)
        return [int(value) for value in vote.tolist()]

    def wait_for_all(self, point: str) -> None:
        """Wait until every rank has come to ``point``; needs no process group."""
        names = [f"own/{point}/{rank}" for rank in range(self.context.world_size)]
        self.store.set(names[self.context.rank], "here")
        self.store.wait(names, timedelta(seconds=self.settings.timeout_s))

    def leave(self) -> None:
        """Say goodbye; rank 0, which holds the store, goes last."""
        context = self.context
        self.store.set(f"own/left/{context.rank}", "gone")
        if context.rank == 0:
            self.wait_for_all("left")


log = structlog.get_logger(__name__)

FORMAT = "own"
"""What a manifest says of files that only the user's function can read."""

Source = Callable[[Path], object] | Path
"""A function that writes files into a folder, or a folder that was written already."""


@dataclass
class Saving:
    """Publishes and finds the checkpoints of one run."""

    peers: Peers
    config: RunConfig
    newest: Checkpoint | None = None
    """The newest that this attempt published or went on from."""
    problem: str = ""
    """Why the newest save failed; empty once one has succeeded."""
    _rejected: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        context = self.peers.context
        self._folders = CheckpointFolders(context.run_dir.checkpoints, context.fence)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None where there is none at all.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole.
        """
        agreement, root = self.peers.agreement, self._folders.root
        names = agreement.on_rank0(self._names)
        for name in reversed(names):
            manifest, problems = verify_together(root / name, agreement)
            if manifest is not None and not problems:
                self.newest = _checkpoint(root / name, manifest)
                return self.newest
            self._reject(root / name, "; ".join(problems))
        if names:
            raise none_is_whole(root, names)
        return None

    def publish(self, step: int, source: Source, extra: Mapping[str, Json]) -> Checkpoint | None:
        """Write, verify and publish; None, with an event, where the disk refused.

        Raises:
            FencedError: a newer attempt owns the run folder.
            RunError: nothing was written, or a file has the manifest's name.
        """
        task = self._task(step, extra)
        try:
            present = self._begin(task)
            if present is None:
                self._fill(task, source)
                files = self._hash_together(task)
                present = self._finish(task, files)
        except AgreedError as error:
            self.problem = str(error)
            self._failed(task)
            return None
        self.problem = ""
        self.newest = _checkpoint(task.target, present)
        return self.newest

    def _names(self) -> list[str]:
        """Published checkpoints; before they are listed, older attempts can publish no more."""
        if self._folders.root.exists():
            with suppress(OSError):  # where nobody can write, nobody publishes
                self._folders.revoke()
        return [path.name for path in list_checkpoints(self._folders.root)]

    def _task(self, step: int, extra: Mapping[str, Json]) -> SaveTask:
        return SaveTask(
            folders=self._folders,
            context=self.peers.context,
            settings=self.config.checkpoint,
            config_hash=entry_hash(self.config),
            state=TrainState(step=step, extra=dict(extra)),
            started=time.monotonic(),
            blocked_s=None,
            rejected=frozenset(self._rejected),
        )

    def _begin(self, task: SaveTask) -> Manifest | None:
        """Make the temporary folder; or the manifest of that step, if it is published already."""

        def begin() -> Manifest | Published | None:
            if task.context.fenced():
                return Published.FENCED
            if task.target.exists() and not verify(task.target):
                return Manifest.read(task.target)
            task.folders.begin(task.state.step)
            return None

        found = self.peers.agreement.on_rank0(begin)
        task.context.mark_save()
        return self._unless_fenced(task, found)

    def _fill(self, task: SaveTask, source: Source) -> None:
        """Let the function write; only the disk's refusal is a failed save, a bug stays a bug."""
        folder, problem = task.folders.temporary(task.state.step), ""
        try:
            if isinstance(source, Path):
                self.peers.agreement.gather(None)  # all ranks have written their part of it
                if self.peers.context.rank == 0:
                    _move_into(source, folder)
            else:
                source(folder)
        except OSError as error:
            problem = f"rank {self.peers.context.rank}: {type(error).__name__}: {error}"
        task.context.mark_save()
        faults.at(faults.Moment.SAVE, step=task.state.step)
        if problems := [one for one in self.peers.agreement.gather(problem) if one]:
            raise AgreedError("; ".join(problems))

    def _hash_together(self, task: SaveTask) -> dict[str, FileRecord]:
        """Flush and hash the files, each rank a share of them."""
        agreement, folder = self.peers.agreement, task.folders.temporary(task.state.step)
        sizes = agreement.on_rank0(lambda: _sizes(folder))
        if not sizes or MANIFEST in sizes:
            what = f"a file named {MANIFEST}, which is ours" if sizes else "no file"
            raise RunError(
                f"publish_checkpoint: expected files of a checkpoint, got {what}, in {folder}; "
                "write into the folder that the function is given"
            )
        by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
        mine = by_size[agreement.rank :: agreement.world_size]
        shares = agreement.together(lambda: {name: _flushed(folder / name) for name in mine})
        task.context.mark_save()
        return {name: record for share in shares for name, record in share.items()}

    def _finish(self, task: SaveTask, files: Mapping[str, FileRecord]) -> Manifest:
        manifest = Manifest(
            state=task.state,
            attempt=task.context.attempt,
            world_size=task.context.world_size,
            config_hash=task.config_hash,
            model_format=FORMAT,
            adapter_only=False,
            created_at=round(time.time(), 3),
            files=files,
        )
        published = self.peers.agreement.on_rank0(lambda: seal_and_publish(task, manifest))
        self._unless_fenced(task, published)
        return manifest

    def _unless_fenced(self, task: SaveTask, found: object) -> Manifest | None:
        if found is Published.FENCED:
            raise FencedError(
                f"attempt {task.context.attempt} may not publish {task.target}: a newer attempt "
                "owns the run folder now; this one ends"
            )
        return found if isinstance(found, Manifest) else None

    def _failed(self, task: SaveTask) -> None:
        if self.peers.context.rank != 0:
            return
        task.folders.discard(task.state.step)
        path, step, reason = str(task.target), task.state.step, self.problem
        task.context.events.write(Kind.CHECKPOINT_FAILED, step=step, path=path, reason=reason)
        log.warning("checkpoint_failed", path=path, reason=reason)

    def _reject(self, path: Path, reason: str) -> None:
        self._rejected.add(path)
        if self.peers.context.rank == 0:
            events = self.peers.context.events
            events.write(Kind.CHECKPOINT_REJECTED, path=str(path), reason=reason)
            log.warning("checkpoint_rejected", path=str(path), reason=reason)


def entry_hash(config: RunConfig) -> str:
    """Digest of what decides what a function of the user's own trains."""
    values = config.model_dump(mode="json", by_alias=True, include={"seed", "entry"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _checkpoint(folder: Path, manifest: Manifest) -> Checkpoint:
    return Checkpoint(folder, manifest.step, dict(manifest.state.extra))


def _move_into(source: Path, folder: Path) -> None:
    """Make the files of ``source`` those of ``folder``; a rename on the same file system."""
    if not source.is_dir():
        raise RunError(
            f"publish_checkpoint: expected a folder with a checkpoint, got {source}, which is none"
        )
    for entry in list(source.iterdir()):
        shutil.move(entry, folder / entry.name)
    source.rmdir()


def _sizes(folder: Path) -> dict[str, int]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.stat().st_size for path in files}


def _flushed(path: Path) -> FileRecord:
    fsync_file(path)
    return digest_file(path)
