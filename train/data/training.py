"""All that a training loop needs of the data: sizes, steps from any position, validation."""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from submitrain.config import RunConfig
from submitrain.config.sections import DataLoaderConfig, DatasetConfig
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


@dataclass
class ValidationPasses:
    """Passes over the validation data. Every rank gets the same number of micro-batches, each unit
    comes exactly once, so summed losses over summed label tokens are the exact mean."""

    loader: Any
    documents: int

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
    _order: UnitOrder = field(init=False, repr=False)

    def __post_init__(self) -> None:
        config = self.config
        self._order = UnitOrder(
            self.units_per_epoch,
            seed=config.seed,
            shuffle=config.dataloader.shuffle,
            skips=self.skips,
        )

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
        batch = self.config.batch(self.world_size)
        batches = RankBatches(
            self.train.store,
            self.train.units,
            self._order,
            rank=self.rank,
            world_size=self.world_size,
            local_size=batch.local_size,
            padding=_padding(self.train, batch.local_size, self.pad_to_fixed),
        )
        parts = StepParts(
            position, self.end_position, batch.global_size, batch.accumulation, self.skips
        )
        return step_batches(batches, parts, self.config.dataloader)


def prepare_data(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    place: DataContext,
    *,
    pad_to_fixed: bool = False,
    skips: Skips = Skips(),  # noqa: B008 - frozen
) -> TrainingData:
    """Tokenize, pack and lay out the data; rank 0 works, the others wait.

    ``pad_to_fixed`` gives every micro-batch the same length (compiled graphs, GPUs); ``skips`` is
    what rollbacks took out of the training data.

    Raises:
        DataError: a data set is missing, empty or malformed.
    """
    train = _prepare(config, config.dataset, tokenizer, place, section="dataset")
    validation = None
    if config.validation_dataset is not None:
        cfg = config.validation_dataset
        held_out = _prepare(config, cfg, tokenizer, place, section="validation_dataset")
        _warn_if_equal(train, held_out)
        validation = _validation(config, held_out, place, pad_to_fixed)
    place.barrier()
    return TrainingData(
        config, place.rank, place.world_size, train, validation, pad_to_fixed, skips
    )


def _prepare(
    config: RunConfig,
    cfg: DatasetConfig,
    tokenizer: PreTrainedTokenizerBase,
    place: DataContext,
    *,
    section: str,
) -> PreparedData:
    try:
        store = prepare_store(cfg, tokenizer, place)
    except DataError as error:
        raise DataError(re.sub("^dataset", section, str(error))) from error
    if config.packs:
        size = max(config.sequence_length, cfg.max_length)
        prepared = PreparedData(store, pack(store.lengths, size), size)
    else:
        prepared = PreparedData(store, one_per_unit(len(store)), cfg.max_length)
    if place.builds:
        _report(section, prepared)
    return prepared


def _report(section: str, data: PreparedData) -> None:
    meta = data.store.meta
    log.info(
        "data.ready",
        section=section,
        source=meta.where,
        units=len(data.units),
        fill_rate=round(data.fill_rate, 4),
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


def _warn_if_equal(train: PreparedData, validation: PreparedData) -> None:
    if train.store.meta.digest == validation.store.meta.digest:
        log.warning(
            "data.validation_equals_training",
            source=train.store.meta.where,
            next_step="hold samples out: dataset.split: train[:95%] and "
            "validation_dataset.split: train[95%:]",
        )


def _validation(
    config: RunConfig, data: PreparedData, place: DataContext, pad_to_fixed: bool
) -> ValidationPasses:
    cfg: DataLoaderConfig = config.validation_dataloader or config.dataloader
    local_size = cfg.batch_size or config.local_batch_size
    batches = RankBatches(
        data.store,
        data.units,
        UnitOrder(len(data.units), seed=config.seed, shuffle=False),
        rank=place.rank,
        world_size=place.world_size,
        local_size=local_size,
        padding=_padding(data, local_size, pad_to_fixed),
    )
    parts = OnePass(len(data.units), local_size * place.world_size)
    loader = open_loader(batches, parts, cfg)
    return ValidationPasses(loader, len(data.store))


def _padding(data: PreparedData, local_size: int, pad_to_fixed: bool) -> Padding | None:
    total = local_size * data.sequence_length
    return Padding(total, data.sequence_length) if pad_to_fixed else None
