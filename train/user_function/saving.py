"""Checkpoints of a user's training function: it writes files, this makes them safe.

All ranks write into one temporary folder; all agree that everyone succeeded; each hashes a share of
the files; rank 0 seals the folder with the manifest and renames it into place, as for the built-in
recipe (``train.checkpoint``). All ranks make the same calls.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from submitrain.config import RunConfig
from submitrain.config.sections import DistributedConfig
from submitrain.errors import RunError
from submitrain.train import faults
from submitrain.train.checkpoint.folders import CheckpointFolders
from submitrain.train.checkpoint.loading import CheckpointSearch
from submitrain.train.checkpoint.manifest import (
    MANIFEST,
    Checkpoint,
    FileRecord,
    Json,
    Manifest,
    TrainState,
)
from submitrain.train.checkpoint.storage import RankError, RankGroup, record_files
from submitrain.train.checkpoint.writing import Published, SaveTask
from submitrain.train.context import RankContext
from submitrain.train.distributed.groups import connect

FORMAT = "own"
"""What a manifest says of files that only the user's function can read."""

Source = Callable[[Path], object] | Path
"""A function that writes files into a folder, or a folder that was written already."""


@dataclass
class Peers:
    """All ranks of this attempt as one of them sees them.

    The function may form the process group by ``RunContext.init_process_group``, by torch's own
    ``init_process_group()`` or by accelerate's: the variables that torchrun would set are there,
    and name the store that the ranks have met in already. No port is agreed on.
    """

    context: RankContext
    settings: DistributedConfig
    store: Store
    device: torch.device
    _group: RankGroup | None = field(default=None, init=False)

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
    def group(self) -> RankGroup:
        """Collectives of a gloo group that nothing else uses; all ranks make it together."""
        if self._group is None and self.context.world_size == 1:
            self._group = RankGroup(None)
        elif self._group is None:
            self.connect()
            timeout = timedelta(seconds=self.settings.timeout_s)
            self._group = RankGroup(dist.new_group(backend="gloo", timeout=timeout))
        return self._group

    def highest(self, *values: int) -> list[int]:
        """The highest of all ranks' values, place by place; the same on every rank."""
        if (group := self.group.group) is None:
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
        """Leave the store; rank 0, which holds the store, goes last."""
        self.store.set(f"own/left/{self.context.rank}", "gone")
        if self.context.rank == 0:
            self.wait_for_all("left")


@dataclass
class Saving:
    """Publishes and finds the checkpoints of one run."""

    peers: Peers
    config: RunConfig
    newest: Checkpoint | None = None
    """The newest that this attempt published or went on from."""
    problem: str = ""
    """Why the newest save failed; empty once one has succeeded."""

    def __post_init__(self) -> None:
        context = self.peers.context
        self._folders = CheckpointFolders(context.run_dir.checkpoints, context.fence)
        self._search = CheckpointSearch(self._folders, context)

    def latest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; None where there is none at all.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole.
        """
        for path, manifest in self._search.newest_first(self.peers.group):
            self.newest = Checkpoint(path, manifest.step, dict(manifest.state.extra))
            return self.newest
        return None

    def publish(self, step: int, source: Source, extra: Mapping[str, Json]) -> Checkpoint | None:
        """Write, verify and publish; None, with an event, where the disk refused.

        Raises:
            FencedError: a newer attempt owns the run folder.
            RunError: nothing was written, or a file has the manifest's name.
        """
        context, ranks = self.peers.context, self.peers.group
        task = SaveTask(
            folders=self._folders,
            context=context,
            settings=self.config.checkpoint,
            config_hash=entry_hash(self.config),
            state=TrainState(step=step, extra=dict(extra)),
            started=time.monotonic(),
            rejected=frozenset(self._search.rejected),
            model_format=FORMAT,
        )
        try:
            published = ranks.on_rank0(lambda: task.begin(any_state=True))
            context.mark_save()
            if published is None:
                self._fill(task, source)
                files = self._hash_together(task)
                published = ranks.on_rank0(lambda: task.publish(files))
            if published is Published.EXISTED:
                extra = ranks.on_rank0(lambda: Manifest.read(task.target).state.extra)
        except RankError as error:
            self.problem = str(error)
            task.record_failure(self.problem)
            return None
        if published is Published.FENCED:
            raise task.fenced_error()
        self.problem = ""
        self.newest = Checkpoint(task.target, step, dict(extra))
        return self.newest

    def _fill(self, task: SaveTask, source: Source) -> None:
        """Let the function write; only the disk's refusal is a failed save, a bug stays a bug."""
        rank, ranks, problem = self.peers.context.rank, self.peers.group, ""
        try:
            if isinstance(source, Path):
                ranks.gather(None)  # all ranks have written their part of it
                if rank == 0:
                    _move_into(source, task.temporary)
            else:
                source(task.temporary)
        except OSError as error:
            problem = f"rank {rank}: {type(error).__name__}: {error}"
        task.context.mark_save()
        faults.at(faults.Moment.SAVE, step=task.state.step)
        if problems := [one for one in ranks.gather(problem) if one]:
            raise RankError("; ".join(problems))

    def _hash_together(self, task: SaveTask) -> dict[str, FileRecord]:
        """Flush and hash the files, each rank a share of them."""
        ranks, folder = self.peers.group, task.temporary

        def sizes_of_files() -> dict[str, int]:
            files = (path for path in folder.rglob("*") if path.is_file())
            return {str(path.relative_to(folder)): path.stat().st_size for path in files}

        sizes = ranks.on_rank0(sizes_of_files)
        if not sizes or MANIFEST in sizes:
            what = f"a file named {MANIFEST}, which is ours" if sizes else "no file"
            raise RunError(
                f"publish_checkpoint: expected files of a checkpoint, got {what}, in {folder}; "
                "write into the folder that the function is given"
            )
        by_size = sorted(sizes, key=lambda name: (-sizes[name], name))
        mine = [folder / name for name in by_size[ranks.rank :: ranks.world_size]]
        shares = ranks.together(lambda: record_files(folder, mine))
        task.context.mark_save()
        return {name: record for share in shares for name, record in share.items()}


def entry_hash(config: RunConfig) -> str:
    """Digest of what decides what a user's function trains."""
    values = config.model_dump(mode="json", by_alias=True, include={"seed", "entry"})
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _move_into(source: Path, folder: Path) -> None:
    """Make the files of ``source`` those of ``folder``; a rename on the same file system."""
    if not source.is_dir():
        raise RunError(
            f"publish_checkpoint: expected a folder with a checkpoint, got {source}, which is none"
        )
    for entry in list(source.iterdir()):
        shutil.move(entry, folder / entry.name)
    source.rmdir()
