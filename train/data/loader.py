"""Loading micro-batches from any position, built on torchdata's StatefulDataLoader.

What a loader process gets to do is a pure description (``Part``): which positions, which
micro-batch. So batches do not depend on the number of processes, and starting at position one
million costs what starting at zero costs. The loader's own state is not needed and not kept.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch

from submitrain.config.sections import DataLoaderConfig
from submitrain.rollbacks import NO_SKIPS, Skips
from submitrain.signals import die_with_parent, ignore_stop_signals, stop_signals_blocked
from submitrain.train.data.batch import MicroBatch, Padding, Units, collate
from submitrain.train.data.order import UnitOrder, rank_share
from submitrain.train.data.store import TokenStore


class Part(NamedTuple):
    """One rank's micro-batch ``number`` out of ``accumulation``, of the units in a range."""

    start: int
    stop: int
    number: int
    accumulation: int


@dataclass
class RankBatches:
    """Map-style data set from a ``Part`` to this rank's micro-batch."""

    store: TokenStore
    units: Units
    order: UnitOrder
    rank: int
    world_size: int
    local_size: int
    padding: Padding | None = None

    def __getitem__(self, part: Part) -> MicroBatch:
        share = rank_share(
            units_of_step(self.order, part.start, part.stop),
            rank=self.rank,
            world_size=self.world_size,
            local_size=self.local_size,
            accumulation=part.accumulation,
        )[part.number]
        docs = [self.units[unit] for _, unit in share]
        return collate(self.store, np.concatenate(docs) if docs else [], self.padding)


@lru_cache(maxsize=1)
def units_of_step(order: UnitOrder, start: int, stop: int) -> list[tuple[int, int]]:
    """The units of a step; its micro-batches come one after the other and ask for the same."""
    return order.units(start, stop)


@dataclass(frozen=True)
class StepParts:
    """Parts of every step from ``position`` to ``end`` (None: endless), ``accumulation`` each.

    The last step before ``end`` may be short; the loop divides by its label tokens, so it weighs
    what it holds.
    """

    position: int
    end: int | None
    global_size: int
    accumulation: int
    skips: Skips = NO_SKIPS

    def __iter__(self) -> Iterator[Part]:
        start = self.position
        while self.end is None or self.skips.kept(start, self.end):
            stop = self.skips.advance(start, self.global_size)
            if self.end is not None:
                stop = min(stop, self.end)
            for number in range(self.accumulation):
                yield Part(start, stop, number, self.accumulation)
            start = stop


@dataclass(frozen=True)
class OnePass:
    """Parts that visit ``count`` units once; every rank gets the same number of micro-batches."""

    count: int
    per_batch: int

    def __iter__(self) -> Iterator[Part]:
        for start in range(0, self.count, self.per_batch):
            yield Part(start, min(start + self.per_batch, self.count), 0, 1)

    def __len__(self) -> int:
        return math.ceil(self.count / self.per_batch)


def open_loader(batches: RankBatches, parts: Iterable[Part], cfg: DataLoaderConfig) -> Any:
    """A StatefulDataLoader over ``parts``; iterating it leaves the global RNG as it is."""
    from torchdata.stateful_dataloader import StatefulDataLoader

    with warnings.catch_warnings():
        # torchdata 0.11 calls torch.set_vital, which torch 2.13 deprecates.
        warnings.filterwarnings("ignore", message="'set_vital' is deprecated")
        return StatefulDataLoader(
            batches,
            batch_size=None,
            sampler=parts,
            num_workers=cfg.num_workers,
            collate_fn=_unchanged,
            pin_memory=cfg.pin_memory and torch.cuda.is_available(),
            prefetch_factor=cfg.prefetch_factor,
            persistent_workers=cfg.persistent_workers,
            worker_init_fn=_start_worker,
            generator=torch.Generator(),
            # With Python 3.14's forkserver a loader process would not be its rank's own child.
            multiprocessing_context="fork" if cfg.num_workers else None,
            snapshot_every_n_steps=0,
        )


def start(loader: Any) -> Iterator[MicroBatch]:
    """Begin a pass; loader processes that this starts do not hear the stop signals."""
    with stop_signals_blocked():
        return iter(loader)


def step_batches(
    batches: RankBatches, parts: StepParts, cfg: DataLoaderConfig
) -> Generator[list[MicroBatch]]:
    """This rank's micro-batches, one list of ``accumulation`` for every step."""
    stream = start(open_loader(batches, parts, cfg))
    for first in stream:
        yield [first, *(next(stream) for _ in range(parts.accumulation - 1))]


def _unchanged(batch: MicroBatch) -> MicroBatch:
    return batch


def _start_worker(_worker: int) -> None:
    ignore_stop_signals()
    die_with_parent()
