"""Where samples come from: opens what ``dataset`` names and cuts out the wanted split.

Local files, the Hugging Face hub, Python's standard library, or a user's own class. Splits have
slices, as the Hugging Face ``datasets`` library writes them: ``train[:95%]``.
"""

from __future__ import annotations

import inspect
import platform
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from submitrain.config.automodel import STDLIB, TEXT
from submitrain.config.sections import DatasetConfig
from submitrain.errors import DataError
from submitrain.imports import load_component
from submitrain.train.data.columns import Row, Sample, Source, find_columns
from submitrain.train.data.files import SUFFIXES, find_files, open_files
from submitrain.train.data.stdlib import library_folder, library_functions

_BATCH = 1024
"""Rows read from a hub data set at once."""
_SPLIT = re.compile(r"(?P<name>[\w.-]+)(?:\[(?P<start>-?\d+%?)?:(?P<stop>-?\d+%?)?\])?")

_OURS = frozenset(
    {
        *("target", "max_length", "column_mapping", "answer_only_loss_mask", "chat_template"),
        *("cache_dir", "num_workers", "num_samples_limit"),
    }
)
"""Keys that this package applies itself, to any data set."""
_SPELLINGS = {
    "dataset_name": ("dataset_name", "path_or_dataset", "path_or_dataset_id"),
    "max_length": ("max_length", "seq_length", "seq_len"),
    "num_samples_limit": ("num_samples_limit", "limit_dataset_samples"),
}
"""Other names that a user's class may take a key by."""


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


def _bound(text: str | None, count: int, *, default: int) -> int:
    if text is None:
        return default
    value = round(int(text[:-1]) * count / 100) if text.endswith("%") else int(text)
    return min(max(value + count if value < 0 else value, 0), count)


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
        columns = None
        for number, row in enumerate(self.source.rows(self.start, self.stop), self.start):
            if columns is None:
                columns = find_columns(list(row), self.mapping, where=self.where)
            yield columns.sample(row, where=f"{self.where}, row {number}")


def read_samples(cfg: DatasetConfig, tokenizer: Any = None) -> Samples:
    """Open the data that a ``dataset`` section names; rows are read when iterated.

    Raises:
        DataError: missing, empty, or a split that is not there.
    """
    split = parse_split(cfg.split)
    source = _open_source(cfg, split.name, tokenizer)
    start, stop = split.bounds(source.count)
    if cfg.num_samples_limit is not None:
        stop = min(stop, start + cfg.num_samples_limit)
    if start == stop:
        raise DataError(
            f"dataset: {source.where}: no samples in split {cfg.split!r} (it has "
            f"{source.count} rows); next: check the file and the split"
        )
    return Samples(source, start, stop, cfg.column_mapping)


def source_key(cfg: DatasetConfig) -> list[Any]:
    """What identifies the data, cheap enough to ask on every rank: for the cache's fingerprint.

    Local files count by path, size and time of change, hub data by name and revision.
    """
    if cfg.target == STDLIB:
        return [STDLIB, platform.python_version(), str(library_folder())]
    if cfg.target != TEXT:
        return _custom_key(cfg)
    path = _local_path(cfg)
    if path is None:
        return [TEXT, cfg.dataset_name, cfg.extra]
    files = find_files(path, parse_split(cfg.split).name)
    return [TEXT, *([str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns] for f in files)]


def _open_source(cfg: DatasetConfig, split: str, tokenizer: Any) -> Source:
    if cfg.target == STDLIB:
        return _open_library(split)
    if cfg.target != TEXT:
        return _open_custom(cfg, tokenizer)
    path = _local_path(cfg)
    if path is None:
        return _open_hub(cfg, split)
    if cfg.extra:
        raise DataError(
            f"dataset.{next(iter(cfg.extra))}: only data of the hub has that, but {path} is local; "
            "next: remove the key"
        )
    return open_files(path, split)


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


def _open_library(split: str) -> Source:
    functions = library_functions(split)

    def rows(start: int, stop: int) -> Iterator[Row]:
        for prompt, completion in functions[start:stop]:
            yield {"prompt": prompt, "completion": completion}

    return Source(f"python_stdlib {split} ({library_folder()})", len(functions), rows)


def _open_hub(cfg: DatasetConfig, split: str) -> Source:
    """Download (or find in the cache) one split, through the ``datasets`` library.

    Raises:
        DataError: no such data set or split, or the hub cannot be reached and the cache has none.
    """
    import datasets

    name = cfg.dataset_name
    cache_dir = None if cfg.cache_dir is None else str(Path(cfg.cache_dir).expanduser())
    try:
        table: Any = datasets.load_dataset(name, split=split, cache_dir=cache_dir, **cfg.extra)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"dataset.dataset_name: cannot load split {split!r} of {name!r}: {reason[:300]}; "
            "next: check the name and the split, give the path of a local JSONL/JSON/Parquet file, "
            "or, where nodes have no network, download once where there is one (datasets."
            f"load_dataset({name!r})) and set HF_HOME to that cache together with HF_HUB_OFFLINE=1"
        ) from error

    def rows(start: int, stop: int) -> Iterator[Row]:
        for first in range(start, stop, _BATCH):
            columns = cast(dict[str, list[Any]], table[first : min(first + _BATCH, stop)])
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))

    return Source(f"{name} (Hugging Face hub)", len(table), rows)


def _open_custom(cfg: DatasetConfig, tokenizer: Any) -> Source:
    """Call a user's class with the section's own keys, and the tokenizer where it takes one.

    Raises:
        DataError: cannot be imported, does not take a key, or is no map-style data set.
    """
    factory = _load_factory(cfg)
    data = factory(**_custom_arguments(factory, cfg, tokenizer))
    for needed in ("__len__", "__getitem__"):
        if not hasattr(data, needed):
            raise DataError(
                f"dataset._target_: {cfg.target} gave a {type(data).__name__} without {needed}; "
                "expected a map-style data set: a sequence of dicts with input_ids and labels, or "
                "with prompt and response"
            )

    def rows(start: int, stop: int) -> Iterator[Row]:
        for number in range(start, stop):
            row = data[number]
            if not isinstance(row, Mapping):
                raise DataError(
                    f"dataset._target_: {cfg.target}: item {number}: expected a dict with "
                    f"input_ids and labels, or with text columns, got {type(row).__name__}"
                )
            yield row

    return Source(cfg.target, len(data), rows)


def _custom_key(cfg: DatasetConfig) -> list[Any]:
    """What identifies the data for the cache: the arguments, the class's file, files they name.

    Data that a class reads from elsewhere is not seen: change an argument or the cache folder.
    """
    module = sys.modules.get(_load_factory(cfg).__module__)
    arguments = {**cfg.extra, **{name: getattr(cfg, name) for name in cfg.model_fields_set}}
    files = [getattr(module, "__file__", None), *arguments.values()]
    stats = [_stat(Path(file)) for file in files if isinstance(file, str)]
    return [cfg.target, {name: str(value) for name, value in sorted(arguments.items())}, stats]


def _load_factory(cfg: DatasetConfig) -> Callable[..., Any]:
    found = load_component(cfg.target, "dataset._target_")
    if not callable(found):
        raise DataError(f"dataset._target_: {cfg.target!r} is not a class or function")
    return cast(Callable[..., Any], found)


def _stat(path: Path) -> list[Any]:
    try:
        stat = path.stat()
    except (OSError, ValueError):
        return []
    return [str(path), stat.st_size, stat.st_mtime_ns]


def _custom_arguments(
    factory: Callable[..., Any], cfg: DatasetConfig, tokenizer: Any
) -> dict[str, Any]:
    parameters = inspect.signature(factory).parameters
    anything = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    arguments = cfg.extra
    for field in sorted(cfg.model_fields_set - {"target"}):
        spellings = _SPELLINGS.get(field, (field,))
        taken = next((name for name in spellings if name in parameters), None)
        if taken is not None:
            arguments[taken] = getattr(cfg, field)
        elif field not in _OURS:
            arguments[field] = getattr(cfg, field)
    if "tokenizer" in parameters:
        arguments["tokenizer"] = tokenizer
    unknown = sorted(set(arguments) - set(parameters))
    if unknown and not anything:
        raise DataError(
            f"dataset.{unknown[0]}: {cfg.target} does not take {', '.join(unknown)}; it takes "
            f"{', '.join(parameters) or 'nothing'}"
        )
    return arguments
