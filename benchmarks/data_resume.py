"""How fast is the data: starting far into it, packing, loading.

Run: ``python -m benchmarks.data_resume``.

Ratios count; seconds are this machine's. Interleaved, medians of several rounds.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from submitrain.config.sections import DataLoaderConfig
from submitrain.train.data.batch import Units, pack
from submitrain.train.data.encode import Document
from submitrain.train.data.loader import RankBatches, StepParts, step_batches
from submitrain.train.data.order import UnitOrder
from submitrain.train.data.store import TokenStore, write_store

SIZE = 2048
ROUNDS = 7
POSITIONS = (1_000, 1_000_000)


def main() -> None:
    """Measure and print one line for each claim."""
    with tempfile.TemporaryDirectory() as folder:
        store = _store(Path(folder), documents=20_000)
        units = pack(store.lengths, SIZE)
        print(f"data: {len(store)} documents, {store.meta.tokens} tokens, {len(units)} units")
        for num_workers in (0, 1):
            _first_batch(store, units, num_workers)
        for num_workers in (0, 1, 2):
            _throughput(store, units, num_workers)
    _packing(1_000_000)


def _store(folder: Path, documents: int) -> TokenStore:
    lengths = _lengths(documents)
    ids = np.random.RandomState(1).randint(0, 32_000, SIZE).astype(np.int32)
    learned = np.arange(SIZE) >= 5
    rows = (Document(ids[:length], learned[:length]) for length in lengths)
    return write_store(folder, rows, where="bench")


def _lengths(count: int) -> np.ndarray:
    return np.random.RandomState(0).lognormal(5.3, 1.0, count).astype(np.int64).clip(8, SIZE)


def _batches(store: TokenStore, units: Units) -> RankBatches:
    order = UnitOrder(len(units), seed=1, shuffle=True)
    return RankBatches(store, units, order, rank=0, world_size=1, local_size=4)


def _first_batch(store: TokenStore, units: Units, num_workers: int) -> None:
    config = DataLoaderConfig(num_workers=num_workers)
    seconds: dict[int, list[float]] = {position: [] for position in POSITIONS}
    for _ in range(ROUNDS):
        for position in POSITIONS:
            parts = StepParts(position, None, global_size=8, accumulation=2)
            stream = step_batches(_batches(store, units), parts, config)
            seconds[position].append(_timed(lambda stream=stream: next(stream)))
    near, far = (statistics.median(seconds[position]) for position in POSITIONS)
    print(
        f"first step's batches, {num_workers} processes: at {POSITIONS[0]} {near * 1e3:.1f} ms, "
        f"at {POSITIONS[1]} {far * 1e3:.1f} ms, ratio {far / near:.2f}"
    )


def _throughput(store: TokenStore, units: Units, num_workers: int) -> None:
    parts = StepParts(0, len(units), global_size=8, accumulation=2)
    stream = step_batches(_batches(store, units), parts, DataLoaderConfig(num_workers=num_workers))
    next(stream)
    began, tokens = time.perf_counter(), 0
    for step in stream:
        tokens += sum(batch.tokens for batch in step)
    rate = tokens / (time.perf_counter() - began)
    print(f"loading, {num_workers} processes: {rate / 1e6:.2f} million tokens/s")


def _packing(count: int) -> None:
    lengths = _lengths(count)
    began = time.perf_counter()
    units = pack(lengths, SIZE)
    seconds = time.perf_counter() - began
    padded = float(lengths.mean() / SIZE)
    filled = units.fill_rate(lengths, SIZE)
    print(
        f"packing {count} documents: {seconds:.2f} s, fill rate {filled:.4f} "
        f"(one document per row: {padded:.4f})"
    )


def _timed(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
