"""All that the training loop needs of the data: sizes, steps from any position, validation."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import structlog

from submitrain.config import RunConfig
from submitrain.config.sections import DatasetConfig
from submitrain.errors import DataError
from submitrain.rollbacks import NO_SKIPS, Skips
from submitrain.train.data.batch import MicroBatch, Padding, Units, one_per_unit, pack
from submitrain.train.data.loader import (
    OnePass,
    RankBatches,
    StepParts,
    open_loader,
    start,
    step_batches,
)
from submitrain.train.data.order import UnitOrder
from submitrain.train.data.prepare import DataContext, counts, prepare_store
from submitrain.train.data.store import TokenStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = structlog.get_logger()


@dataclass(frozen=True)
class PreparedData:
    """Tokenized and packed data of one section."""

    store: TokenStore
    units: Units
    sequence_length: int

    @property
    def fill_rate(self) -> float:
        """Share of the slots of all units that hold a token."""
        return self.units.fill_rate(self.store.lengths, self.sequence_length)

    def rank_batches(
        self, order: UnitOrder, rank: int, world_size: int, local_size: int, pad_to_fixed: bool
    ) -> RankBatches:
        """One rank's micro-batches of ``local_size`` units; with padding all have one length."""
        total = local_size * self.sequence_length
        padding = Padding(total, self.sequence_length) if pad_to_fixed else None
        return RankBatches(
            self.store,
            self.units,
            order,
            rank=rank,
            world_size=world_size,
            local_size=local_size,
            padding=padding,
        )


@dataclass
class ValidationPasses:
    """Passes over the validation data. Every rank gets the same number of micro-batches, each unit
    comes exactly once, so summed losses over summed label tokens are the exact mean."""

    loader: Any

    def __len__(self) -> int:
        return len(self.loader.sampler)

    def batches(self) -> Iterator[MicroBatch]:
        """One pass, in the same order every time."""
        return start(self.loader)


@dataclass
class TrainingData:
    """The data of a run, as one rank sees it."""

    config: RunConfig
    rank: int
    world_size: int
    train: PreparedData
    validation: ValidationPasses | None
    pad_to_fixed: bool = False
    skips: Skips = NO_SKIPS
    """What rollbacks took out of the stream."""

    @property
    def units_per_epoch(self) -> int:
        """Packed sequences, or documents without packing, in one epoch."""
        return len(self.train.units)

    @property
    def documents(self) -> int:
        """Samples in one epoch."""
        return len(self.train.store)

    @property
    def fingerprint(self) -> str:
        """Says whether a position means the same here as where it was saved."""
        config, digest = self.config, self.train.store.meta.digest
        size = config.sequence_length if config.packs else 0
        text = f"{digest} {size} {config.seed} {config.dataloader.shuffle}"
        return hashlib.sha256(text.encode()).hexdigest()[:32]

    @property
    def end_position(self) -> int | None:
        """Units that the asked-for epochs have; None when only max_steps ends the run."""
        scheduler = self.config.step_scheduler
        epochs = scheduler.num_epochs or (None if scheduler.max_steps else 1)
        return None if epochs is None else epochs * self.units_per_epoch

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run."""
        return self._steps(self.skips)

    @property
    def planned_steps(self) -> int:
        """The same as if no data were left out: the learning rate of a step must not change."""
        return self._steps(NO_SKIPS)

    def _steps(self, skips: Skips) -> int:
        most, end = self.config.step_scheduler.max_steps, self.end_position
        if end is None:
            assert most is not None
            return most
        units = skips.kept(0, end)
        steps = math.ceil(units / self.config.batch(self.world_size).global_size)
        return steps if most is None else min(most, steps)

    def next_position(self, position: int) -> int:
        """Where the stream stands after the step that begins at ``position``."""
        stop = self.skips.advance(position, self.config.batch(self.world_size).global_size)
        return stop if self.end_position is None else min(stop, self.end_position)

    def step_batches(self, position: int) -> Generator[list[MicroBatch]]:
        """This rank's micro-batches of every step from ``position`` on, ``accumulation`` each."""
        config, batch = self.config, self.config.batch(self.world_size)
        shuffle = config.dataloader.shuffle
        order = UnitOrder(self.units_per_epoch, config.seed, shuffle, self.skips)
        batches = self.train.rank_batches(
            order, self.rank, self.world_size, batch.local_size, self.pad_to_fixed
        )
        parts = StepParts(
            position, self.end_position, batch.global_size, batch.accumulation, self.skips
        )
        return step_batches(batches, parts, self.config.dataloader)


def prepare_data(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    where: DataContext,
    *,
    pad_to_fixed: bool = False,
    skips: Skips = NO_SKIPS,
) -> TrainingData:
    """Tokenize, pack and lay out the data; rank 0 works, the others wait.

    ``pad_to_fixed`` gives every micro-batch the same length (compiled graphs, GPUs); ``skips`` is
    what rollbacks took out of the training data.

    Raises:
        DataError: a data set is missing, empty or malformed.
    """
    train = _prepare_section(config, config.dataset, tokenizer, where, section="dataset")
    validation = None
    if config.validation_dataset is not None:
        cfg = config.validation_dataset
        held_out = _prepare_section(config, cfg, tokenizer, where, section="validation_dataset")
        if train.store.meta.digest == held_out.store.meta.digest:
            log.warning(
                "data.validation_equals_training",
                source=train.store.meta.where,
                next_step="hold samples out: dataset.split: train[:95%] and "
                "validation_dataset.split: train[95%:]",
            )
        validation = _validation(config, held_out, where, pad_to_fixed)
    where.barrier()
    return TrainingData(
        config, where.rank, where.world_size, train, validation, pad_to_fixed, skips
    )


def _prepare_section(
    config: RunConfig,
    cfg: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    where: DataContext,
    *,
    section: str,
) -> PreparedData:
    """Tokenized and packed data of one section; rank 0 tells what it is."""
    try:
        store = prepare_store(cfg, tokenizer, where)
    except DataError as error:
        raise DataError(re.sub("^dataset", section, str(error))) from error
    if config.packs:
        size = max(config.sequence_length, cfg.max_length)
        prepared = PreparedData(store, pack(store.lengths, size), size)
    else:
        prepared = PreparedData(store, one_per_unit(len(store)), cfg.max_length)
    if not where.builds:
        return prepared
    meta = store.meta
    log.info(
        "data.ready",
        section=section,
        source=meta.where,
        units=len(prepared.units),
        fill_rate=round(prepared.fill_rate, 4),
        **counts(meta),
    )
    if meta.dropped:
        log.warning(
            "data.samples_dropped",
            section=section,
            dropped=meta.dropped,
            samples=meta.samples,
            reason="no token of the answer is left within max_length",
        )
    return prepared


def _validation(
    config: RunConfig, data: PreparedData, where: DataContext, pad_to_fixed: bool
) -> ValidationPasses:
    cfg = config.validation_dataloader or config.dataloader
    local_size = cfg.batch_size or config.local_batch_size
    order = UnitOrder(len(data.units), seed=config.seed, shuffle=False)
    batches = data.rank_batches(order, where.rank, where.world_size, local_size, pad_to_fixed)
    parts = OnePass(len(data.units), local_size * where.world_size)
    return ValidationPasses(open_loader(batches, parts, cfg))
