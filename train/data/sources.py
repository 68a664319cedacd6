"""Local data: a JSONL, JSON or Parquet file, or a folder of them.

Splits with slices, as the Hugging Face ``datasets`` library writes them: ``train[:95%]``.

Where samples come from: opens what ``dataset`` names and cuts out the wanted split.
"""

from __future__ import annotations

import gzip
import json
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, cast

from submitrain.config.automodel import STDLIB, TEXT
from submitrain.config.sections import DatasetConfig
from submitrain.errors import DataError
from submitrain.train.data.columns import Row, Sample, Source, find_columns
from submitrain.train.data.custom import build_custom, custom_source_key, load_from_hub
from submitrain.train.data.stdlib import library_folder, open_library

_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")


@dataclass(frozen=True)
class Split:
    """A split's name and the part of it to use; bounds are ``100``, ``-5`` or ``95%``."""

    name: str
    start: str | None = None
    stop: str | None = None

    def bounds(self, count: int) -> tuple[int, int]:
        """First row and the row after the last one, out of ``count`` rows.

        Percentages are rounded to the nearest row, as ``datasets`` does, so ``[:95%]`` and
        ``[95%:]`` share their border and no row.
        """
        start = _bound(self.start, count, default=0)
        stop = _bound(self.stop, count, default=count)
        return start, max(start, stop)


def parse_split(text: str) -> Split:
    """Read ``train``, ``train[:90%]``, ``train[100:200]`` or ``train[-5%:]``.

    Raises:
        DataError: none of these.
    """
    match = _SPLIT.fullmatch(text.strip().replace(" ", ""))
    if match is None:
        raise DataError(
            f"dataset.split: expected a split such as train, train[:95%], train[100:200] or "
            f"train[-5%:], got {text!r}"
        )
    return Split(match["name"], match["start"], match["stop"])


def _bound(text: str | None, count: int, *, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    if value < 0:
        value += count
    return min(max(value, 0), count)


SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


@dataclass(frozen=True)
class Files:
    """Rows of several files, one after the other."""

    paths: tuple[Path, ...]

    @property
    def where(self) -> str:
        """The only file, or the folder and how many files of it."""
        if len(self.paths) == 1:
            return str(self.paths[0])
        return f"{self.paths[0].parent} ({len(self.paths)} files)"

    @cached_property
    def counts(self) -> tuple[int, ...]:
        """Rows of every file."""
        return tuple(_count(path) for path in self.paths)

    def count(self) -> int:
        """Rows of all files."""
        return sum(self.counts)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows by their number over all files."""
        first = 0
        for path, count in zip(self.paths, self.counts, strict=True):
            if start < first + count and stop > first:
                yield from islice(_read(path), max(start - first, 0), stop - first)
            first += count


def is_data_file(path: Path) -> bool:
    """Whether the name says that we can read it."""
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def find_files(path: Path, split: str) -> tuple[Path, ...]:
    """The files of ``split``: the file itself, or those of a folder whose names say so.

    Files of a folder belong to a split by a word in their name or in their folder's name
    (``train``, ``validation``, ``valid``, ``val``, ``dev``, ``test``); what has no such word is
    ``train``, as a single file is.

    Raises:
        DataError: nothing there, or nothing of that split.
    """
    if path.is_file():
        if not is_data_file(path):
            raise DataError(
                f"dataset.dataset_name: cannot read {path}; allowed: {', '.join(SUFFIXES)}"
            )
        if split != "train":
            raise DataError(
                f"dataset.split: the single file {path} has no split {split!r}; next: use train or "
                "a part of it such as train[:95%] and train[95%:], or a folder with files named "
                "after the split"
            )
        return (path,)
    found = sorted(file for file in path.rglob("*") if file.is_file() and is_data_file(file))
    if not found:
        raise DataError(
            f"dataset.dataset_name: the folder {path} holds no data; allowed: {', '.join(SUFFIXES)}"
        )
    splits = {file: _split_of(file.relative_to(path)) for file in found}
    chosen = [file for file in found if (splits[file] or "train") == _canonical(split)]
    if not chosen:
        names = sorted({name or "train" for name in splits.values()})
        raise DataError(
            f"dataset.split: {path} has no file for {split!r}; found {', '.join(names)} in "
            f"{', '.join(str(file.relative_to(path)) for file in found[:5])}"
        )
    return tuple(chosen)


def _canonical(split: str) -> str:
    return next((name for name, words in _SPLIT_NAMES.items() if split in words), split)


def _split_of(file: Path) -> str | None:
    text = str(file).lower().replace("\\", "/")
    for separator in "/-_.":
        text = text.replace(separator, " ")
    words = set(text.split())
    return next((name for name, known in _SPLIT_NAMES.items() if words & set(known)), None)


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]

        return cast(int, parquet.read_metadata(path).num_rows)
    if _is_array(path):
        return len(_array(path))
    with _open(path) as file:
        return sum(1 for line in file if line.strip())


def _read(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        return _parquet(path)
    return iter(_array(path)) if _is_array(path) else _lines(path)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _is_array(path: Path) -> bool:
    """JSON files hold either one array of rows or one row per line."""
    with _open(path) as file:
        return next((line.lstrip()[:1] == b"[" for line in file if line.strip()), False)


def _array(path: Path) -> list[Row]:
    with _open(path) as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            raise DataError(f"dataset: {path}: not valid JSON: {error}") from error
    for number, row in enumerate(rows):
        _check(row, path, f"element {number}")
    return cast(list[Row], rows)


def _lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"dataset: {path}:{number}: not valid JSON: {error}") from error
            _check(row, path, f"line {number}")
            yield row


def _check(row: object, path: Path, place: str) -> None:
    if not isinstance(row, dict):
        raise DataError(
            f"dataset: {path}: {place}: expected a JSON object with named columns, "
            f"got {type(row).__name__}"
        )


def _parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()


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
    source = _open_source(cfg, split, tokenizer)
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


def _open_source(cfg: DatasetConfig, split: Split, tokenizer: Any) -> Source:
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
