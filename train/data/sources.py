"""Where samples come from: opens what ``dataset`` names and cuts out the wanted split."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.config.sections import DatasetConfig
from train.config.targets import STDLIB, TEXT
from train.data.custom import build_custom, custom_source_key
from train.data.columns import find_columns
from train.data.files import SUFFIXES, Files, find_files
from train.data.hub import load_from_hub
from train.data.samples import Sample, Source
from train.data.split import Split, parse_split
from train.data.stdlib import library_folder, open_library
from train.errors import DataError


@dataclass(frozen=True)
class Samples:
    """The samples of a split, read on demand; their numbers count from the split's start."""

    source: Source
    start: int
    stop: int
    mapping: dict[str, str] | None = None

    @property
    def where(self) -> str:
        """What the samples are from."""
        return self.source.where

    def __len__(self) -> int:
        return self.stop - self.start

    def __iter__(self) -> Iterator[Sample]:
        """The samples in order.

        Raises:
            DataError: a row that is no sample; the message has its number.
        """
        columns, where = None, self.source.where
        for number, row in enumerate(self.source.rows(self.start, self.stop), self.start):
            if columns is None:
                columns = find_columns(list(row), self.mapping, where=where)
            yield columns.sample(row, where=f"{where}, row {number}")


def read_samples(cfg: DatasetConfig, tokenizer: Any = None) -> Samples:
    """Open the data that a ``dataset`` section names; rows are read when iterated.

    Raises:
        DataError: missing, empty, or a split that is not there.
    """
    split = parse_split(cfg.split)
    source = _open(cfg, split, tokenizer)
    start, stop = split.bounds(source.count())
    if cfg.num_samples_limit is not None:
        stop = min(stop, start + cfg.num_samples_limit)
    if start == stop:
        raise DataError(
            f"dataset: {source.where}: no samples in split {cfg.split!r} (it has "
            f"{source.count()} rows); next: check the file and the split"
        )
    return Samples(source, start, stop, cfg.column_mapping)


def source_key(cfg: DatasetConfig) -> list[Any]:
    """What identifies the data, cheap enough to ask on every rank: for the cache's fingerprint.

    Local files count by path, size and time of change, hub data by name and revision.
    """
    if cfg.target == STDLIB:
        return [STDLIB, platform.python_version(), str(library_folder())]
    if cfg.target != TEXT:
        return custom_source_key(cfg)
    path = _local_path(cfg)
    if path is None:
        return [TEXT, cfg.dataset_name, cfg.extra]
    files = find_files(path, parse_split(cfg.split).name)
    return [TEXT, *([str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def _open(cfg: DatasetConfig, split: Split, tokenizer: Any) -> Source:
    if cfg.target == STDLIB:
        return open_library(split.name)
    if cfg.target != TEXT:
        return build_custom(cfg, tokenizer)
    path = _local_path(cfg)
    if path is None:
        cache_dir = None if cfg.cache_dir is None else Path(cfg.cache_dir).expanduser()
        assert cfg.dataset_name is not None
        return load_from_hub(cfg.dataset_name, split.name, cache_dir=cache_dir, options=cfg.extra)
    if cfg.extra:
        raise DataError(
            f"dataset.{next(iter(cfg.extra))}: only data of the hub has that, but {path} is local; "
            "next: remove the key"
        )
    return Files(find_files(path, split.name))


def _local_path(cfg: DatasetConfig) -> Path | None:
    """The path that ``dataset_name`` is, or None for a hub name."""
    name = cfg.dataset_name
    if name is None:
        raise DataError(
            "dataset.dataset_name: missing; next: give a hub name (tatsu-lab/alpaca), the path of "
            f"a JSONL/JSON/Parquet file or folder, or _target_: {STDLIB} for built-in text"
        )
    path = Path(name).expanduser()
    if path.exists():
        return path
    if name.startswith(("/", "./", "../", "~")) or name.lower().endswith(SUFFIXES):
        raise DataError(
            f"dataset.dataset_name: no file or folder {name!r} (looked from {Path.cwd()})"
        )
    return None
