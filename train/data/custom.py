"""A user's own data set class, named by import path.

Data sets of the Hugging Face hub, through the ``datasets`` library and its cache.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from submitrain.config.sections import DatasetConfig
from submitrain.errors import DataError
from submitrain.imports import load_component
from submitrain.train.data.columns import Row

_BATCH = 1024


@dataclass(frozen=True)
class HubData:
    """Rows of one split of a hub data set."""

    name: str
    table: Any

    @property
    def where(self) -> str:
        """The hub name."""
        return f"{self.name} (Hugging Face hub)"

    def count(self) -> int:
        """Rows of the split."""
        return len(self.table)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Rows by number; columns that are not text stay what they are."""
        for first in range(start, stop, _BATCH):
            columns = cast(dict[str, list[Any]], self.table[first : min(first + _BATCH, stop)])
            for values in zip(*columns.values(), strict=True):
                yield dict(zip(columns, values, strict=True))


def load_from_hub(
    name: str, split: str, *, cache_dir: Path | None, options: dict[str, Any]
) -> HubData:
    """Download (or find in the cache) one split.

    Raises:
        DataError: no such data set or split, or the hub cannot be reached and the cache has none.
    """
    import datasets

    try:
        table = datasets.load_dataset(
            name, split=split, cache_dir=None if cache_dir is None else str(cache_dir), **options
        )
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(
            f"dataset.dataset_name: cannot load split {split!r} of {name!r}: {reason[:300]}; "
            "next: check the name and the split, give the path of a local JSONL/JSON/Parquet file, "
            "or, where nodes have no network, download once where there is one (datasets."
            f"load_dataset({name!r})) and set HF_HOME to that cache together with HF_HUB_OFFLINE=1"
        ) from error
    return HubData(name, table)


_OURS = frozenset(
    {
        *("target", "max_length", "column_mapping", "answer_only_loss_mask", "chat_template"),
        *("cache_dir", "num_workers", "num_samples_limit"),
    }
)
"""Keys that this package applies itself, to any data set."""

_SPELLINGS = {
    "dataset_name": ("dataset_name", "path_or_dataset", "path_or_dataset_id"),
    "split": ("split",),
    "max_length": ("max_length", "seq_length", "seq_len"),
    "num_samples_limit": ("num_samples_limit", "limit_dataset_samples"),
}


@dataclass(frozen=True)
class CustomData:
    """Rows of a map-style data set."""

    path: str
    data: Any

    @property
    def where(self) -> str:
        """The class's import path."""
        return self.path

    def count(self) -> int:
        """``len`` of the data set."""
        return len(self.data)

    def rows(self, start: int, stop: int) -> Iterator[Row]:
        """Its items, which must be mappings."""
        for number in range(start, stop):
            row = self.data[number]
            if not isinstance(row, Mapping):
                raise DataError(
                    f"dataset._target_: {self.path}: item {number}: expected a dict with input_ids "
                    f"and labels, or with text columns, got {type(row).__name__}"
                )
            yield row


def build_custom(cfg: DatasetConfig, tokenizer: Any) -> CustomData:
    """Call the class with the section's own keys, and with the tokenizer where it takes one.

    Raises:
        DataError: cannot be imported, does not take a key, or is no map-style data set.
    """
    factory = _factory(cfg)
    data = factory(**_arguments(factory, cfg, tokenizer))
    for needed in ("__len__", "__getitem__"):
        if not hasattr(data, needed):
            raise DataError(
                f"dataset._target_: {cfg.target} gave a {type(data).__name__} without {needed}; "
                "expected a map-style data set: a sequence of dicts with input_ids and labels, or "
                "with prompt and response"
            )
    return CustomData(cfg.target, data)


def custom_source_key(cfg: DatasetConfig) -> list[Any]:
    """What identifies the data for the cache: the arguments, the class's file, files they name.

    Data that a class reads from elsewhere is not seen: change an argument or the cache folder.
    """
    module = sys.modules.get(_factory(cfg).__module__)
    arguments = {**cfg.extra, **{name: getattr(cfg, name) for name in cfg.model_fields_set}}
    files = [getattr(module, "__file__", None), *arguments.values()]
    stats = [_stat(Path(file)) for file in files if isinstance(file, str)]
    return [cfg.target, {name: str(value) for name, value in sorted(arguments.items())}, stats]


def _factory(cfg: DatasetConfig) -> Callable[..., Any]:
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


def _arguments(factory: Callable[..., Any], cfg: DatasetConfig, tokenizer: Any) -> dict[str, Any]:
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
