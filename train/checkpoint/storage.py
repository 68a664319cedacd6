"""Tensors to files and back with torch.distributed.checkpoint; every rank does its own share.

    model/  shard-00001-model-00001-of-00001.safetensors ...   (or .distcp with torch_save)
    optim/  __0_0.distcp ... .metadata  scalars.json

Reading needs no collective: each rank opens the files and takes what it holds. ``RankGroup`` makes
an error on one rank an error on all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

from submitrain.errors import CheckpointError
from submitrain.train.checkpoint.folders import fsync_file
from submitrain.train.checkpoint.manifest import FileRecord, digest_file

T = TypeVar("T")

MODEL = "model"
OPTIMIZER = "optim"
SCALARS = "scalars.json"
"""The optimizer's numbers as JSON; floats come back exactly."""


class RankError(CheckpointError):
    """Work that failed on some rank; every rank gets this error with the same text."""


@dataclass(frozen=True)
class RankGroup:
    """Object collectives of a gloo group; None means a single process without torch.distributed.

    Never from two threads at once: the saving thread has the group from a save's start to its end.
    """

    group: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        """This process's rank in the group."""
        return dist.get_rank(self.group) if self.group is not None else 0

    @property
    def world_size(self) -> int:
        """Number of ranks in the group."""
        return dist.get_world_size(self.group) if self.group is not None else 1

    def gather(self, value: T) -> list[T]:
        """Every rank's ``value``, in rank order, on every rank."""
        if self.group is None:
            return [value]
        values: list[T | None] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.group)
        return values  # type: ignore[return-value]

    def together(self, work: Callable[[], T]) -> list[T]:
        """Do ``work`` on every rank and return all results, or fail on every rank.

        Raises:
            RankError: it failed somewhere; the text names the ranks and their errors.
        """
        value, problem = None, ""
        # Any error at all: a rank that does not come to the gathering would hang the others.
        try:
            value = work()
        except CheckpointException as error:
            causes = {f"{type(cause).__name__}: {cause}" for cause, _ in error.failures.values()}
            problem = ", ".join(sorted(causes))
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
        results = self.gather((value, problem))
        problems = [f"rank {rank}: {text}" for rank, (_, text) in enumerate(results) if text]
        if problems:
            raise RankError("; ".join(dict.fromkeys(problems)))
        return [result for result, _ in results]  # type: ignore[misc]

    def on_rank0(self, work: Callable[[], T]) -> T:
        """Do ``work`` on rank 0 and return its result on every rank, or fail on every rank.

        Raises:
            RankError: it failed.
        """
        return self.together(lambda: work() if self.rank == 0 else None)[0]  # type: ignore[return-value]


def write_tensors(
    folder: Path,
    tensors: Mapping[str, torch.Tensor],
    *,
    safetensors: bool,
    group: dist.ProcessGroup,
) -> None:
    """Write every rank's share of ``tensors`` into ``folder``; all ranks of ``group`` call it.

    Raises:
        CheckpointException: some rank could not write; raised on all of them alike.
    """
    writer: FileSystemWriter
    if safetensors:
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
    else:
        writer = FileSystemWriter(folder, sync_files=False, overwrite=False)
    save(dict(tensors), storage_writer=writer, process_group=group)


def files_of_rank(checkpoint: Path, rank: int) -> list[Path]:
    """The files of model and optimizer that a rank wrote."""
    prefixes = [f"shard-{rank + 1:05d}-", f"__{rank}_"]
    if rank == 0:
        prefixes += [".metadata", SCALARS]
    return [
        path
        for part in (MODEL, OPTIMIZER)
        for path in sorted((checkpoint / part).iterdir())
        if path.name.startswith(tuple(prefixes))
    ]


def record_files(checkpoint: Path, paths: Iterable[Path]) -> dict[str, FileRecord]:
    """Flush and hash ``paths``; names are relative to ``checkpoint``."""
    records = {}
    for path in paths:
        fsync_file(path)
        records[str(path.relative_to(checkpoint))] = digest_file(path)
    return records


class StoredTensors:
    """The tensors of one part of a checkpoint, readable in any sharding."""

    def __init__(self, folder: Path, *, safetensors: bool) -> None:
        self._reader = (
            HuggingFaceStorageReader(str(folder)) if safetensors else FileSystemReader(folder)
        )
        self._metadata = self._reader.read_metadata()
        self._reader.set_up_storage_reader(self._metadata, is_coordinator=True)
        self.names = set(self._metadata.state_dict_metadata)

    def read_whole(self, name: str) -> torch.Tensor:
        """One tensor, gathered from all shards."""
        stored = self._metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        tensor = torch.empty(stored.size, dtype=stored.properties.dtype)
        self.read({name: tensor})
        return tensor

    def read(self, targets: Mapping[str, torch.Tensor]) -> None:
        """Fill ``targets`` in place, whatever world size wrote them; a rank reads what it holds.

        Raises:
            RuntimeError, ValueError: a target is missing here or has another shape.
            OSError: a file cannot be read.
        """
        planner = DefaultLoadPlanner()
        planner.set_up_planner(dict(targets), self._metadata, is_coordinator=True)
        plan = self._reader.prepare_local_plan(planner.create_local_plan())
        [plan] = planner.create_global_plan([plan])
        self._reader.read_data(planner.finish_plan(plan), planner).wait()
