"""Local data: a JSONL, JSON or Parquet file, or a folder of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import BinaryIO, cast

from submitrain.errors import DataError
from submitrain.train.data.columns import Row, Source

SUFFIXES = (".jsonl", ".json", ".parquet", ".jsonl.gz", ".json.gz")
_SPLIT_NAMES = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev", "eval"),
    "test": ("test",),
}


def open_files(path: Path, split: str) -> Source:
    """The rows of the files of ``split``, one file after the other."""
    paths = find_files(path, split)
    counts = [_count(path) for path in paths]
    where = str(paths[0]) if len(paths) == 1 else f"{paths[0].parent} ({len(paths)} files)"

    def rows(start: int, stop: int) -> Iterator[Row]:
        first = 0
        for path, count in zip(paths, counts, strict=True):
            if start < first + count and stop > first:
                yield from islice(_read(path), max(start - first, 0), stop - first)
            first += count

    return Source(where, sum(counts), rows)


def find_files(path: Path, split: str) -> tuple[Path, ...]:
    """The files of ``split``: the file itself, or those of a folder whose names say so.

    Files of a folder belong to a split by a word in their name or in their folder's name
    (``train``, ``validation``, ``valid``, ``val``, ``dev``, ``test``); what has no such word is
    ``train``, as a single file is.

    Raises:
        DataError: nothing there, or nothing of that split.
    """
    if path.is_file():
        if not _is_data_file(path):
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
    found = sorted(file for file in path.rglob("*") if file.is_file() and _is_data_file(file))
    if not found:
        raise DataError(
            f"dataset.dataset_name: the folder {path} holds no data; allowed: {', '.join(SUFFIXES)}"
        )
    wanted = next((name for name, words in _SPLIT_NAMES.items() if split in words), split)
    splits = {file: _split_of(file.relative_to(path)) for file in found}
    chosen = [file for file in found if splits[file] == wanted]
    if not chosen:
        raise DataError(
            f"dataset.split: {path} has no file for {split!r}; found "
            f"{', '.join(sorted(set(splits.values())))} in "
            f"{', '.join(str(file.relative_to(path)) for file in found[:5])}"
        )
    return tuple(chosen)


def _is_data_file(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES) and not path.name.startswith(".")


def _split_of(file: Path) -> str:
    words = set(str(file).lower().translate(dict.fromkeys(map(ord, "\\/-_."), " ")).split())
    return next((name for name, known in _SPLIT_NAMES.items() if words & set(known)), "train")


def _count(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]

        return cast(int, parquet.read_metadata(path).num_rows)
    if _is_array(path):
        return len(_read_array(path))
    with _open(path) as file:
        return sum(1 for line in file if line.strip())


def _read(path: Path) -> Iterator[Row]:
    if path.suffix == ".parquet":
        return _read_parquet(path)
    return iter(_read_array(path)) if _is_array(path) else _read_lines(path)


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(path)) if path.suffix == ".gz" else path.open("rb")


def _is_array(path: Path) -> bool:
    """JSON files hold either one array of rows or one row per line."""
    with _open(path) as file:
        return next((line.lstrip()[:1] == b"[" for line in file if line.strip()), False)


def _read_array(path: Path) -> list[Row]:
    with _open(path) as file:
        try:
            rows = json.load(file)
        except ValueError as error:
            raise DataError(f"dataset: {path}: not valid JSON: {error}") from error
    return [_checked(row, path, f"element {number}") for number, row in enumerate(rows)]


def _read_lines(path: Path) -> Iterator[Row]:
    with _open(path) as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except ValueError as error:
                raise DataError(f"dataset: {path}:{number}: not valid JSON: {error}") from error
            yield _checked(row, path, f"line {number}")


def _checked(row: object, path: Path, place: str) -> Row:
    if not isinstance(row, dict):
        raise DataError(
            f"dataset: {path}: {place}: expected a JSON object with named columns, "
            f"got {type(row).__name__}"
        )
    return row


def _read_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as parquet

    with parquet.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=1024):
            yield from batch.to_pylist()
