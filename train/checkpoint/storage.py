"""Tensors to files and back with torch.distributed.checkpoint; every rank does its own share.

    model/  shard-00001-model-00001-of-00001.safetensors ...   (or .distcp with torch_save)
    optim/  __0_0.distcp ... .metadata  scalars.json

Reading needs no collective: each rank opens the files and takes what it holds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.filesystem import FileSystemReader, FileSystemWriter
from torch.distributed.checkpoint.hf_storage import (
    HuggingFaceStorageReader,
    HuggingFaceStorageWriter,
)
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_saver import save

from train.checkpoint.folders import fsync_file
from train.checkpoint.manifest import FileRecord, digest_file
from train.checkpoint.tensors import Scalars

MODEL = "model"
OPTIMIZER = "optim"
SCALARS = "scalars.json"


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


def write_scalars(folder: Path, scalars: Scalars) -> None:
    """Write the optimizer's numbers as JSON; floats come back exactly. One rank calls this."""
    (folder / SCALARS).write_text(json.dumps(scalars))


def read_scalars(folder: Path) -> Scalars:
    """Inverse of ``write_scalars``."""
    scalars: Scalars = json.loads((folder / SCALARS).read_text())
    return scalars


def record_own_files(checkpoint: Path, rank: int) -> dict[str, FileRecord]:
    """Flush and hash the files that this rank wrote; names are relative to ``checkpoint``."""
    prefixes = [f"shard-{rank + 1:05d}-", f"__{rank}_"]
    if rank == 0:
        prefixes += [".metadata", SCALARS]
    return record_files(
        checkpoint,
        [
            path
            for part in (MODEL, OPTIMIZER)
            for path in sorted((checkpoint / part).iterdir())
            if path.name.startswith(tuple(prefixes))
        ],
    )


def record_files(checkpoint: Path, paths: list[Path]) -> dict[str, FileRecord]:
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

    @property
    def names(self) -> set[str]:
        """Names of all tensors."""
        return set(self._metadata.state_dict_metadata)

    def shape(self, name: str) -> torch.Size:
        """Shape of the whole tensor."""
        return self._tensor(name).size

    def dtype(self, name: str) -> torch.dtype:
        """Data type as stored."""
        return self._tensor(name).properties.dtype

    def _tensor(self, name: str) -> TensorStorageMetadata:
        stored = self._metadata.state_dict_metadata[name]
        assert isinstance(stored, TensorStorageMetadata)
        return stored

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
