"""Data sets of the Hugging Face hub, through the ``datasets`` library and its cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from train.data.samples import Row
from train.errors import DataError

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
