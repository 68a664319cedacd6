"""Local data: a JSONL, JSON or Parquet file, or a folder of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from train.data.samples import Row
from train.errors import DataError

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
