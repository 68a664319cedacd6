"""Our side of ``benchmarks.trainer``: the product's own loop, with a stopwatch in its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from benchmarks.stopwatch import Stopwatch
from submitrain.config import RunConfig
from submitrain.train.callbacks.journal import Journal
from submitrain.train.callbacks.trackers import Trackers
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.context import RankContext
from submitrain.train.data.batch import MicroBatch
from submitrain.train.data.prepare import DataContext, prepare_tokenizer
from submitrain.train.data.training import prepare_data
from submitrain.train.distributed.groups import World
from submitrain.train.distributed.hardware import work_of
from submitrain.train.model.build import build_model, fill_weights
from submitrain.train.optim import LearningRate, build_optimizer
from submitrain.train.step import Stepper
from submitrain.train.trainer import Trainer


@dataclass(frozen=True)
class TimedJournal(Journal):
    """The product's journal; ``samples`` is the last thing that it is told about a step."""

    watch: Stopwatch = field(kw_only=True)

    def samples(self, step: int, batches: Sequence[MicroBatch]) -> None:
        """Record, count, stop the time."""
        super().samples(step, batches)
        for batch in batches:
            self.watch.count(
                tokens=batch.tokens,
                label_tokens=batch.label_tokens,
                slots=batch.input_ids.numel(),
            )
        self.watch.step_done()


class Ours:
    """One model of ours that is trained for round after round of ``config``'s ``max_steps``."""

    def __init__(
        self, context: RankContext, config: RunConfig, world: World, place: DataContext
    ) -> None:
        self.context, self.config, self.world = context, config, world
        tokenizer = prepare_tokenizer(config, place)
        self.data = prepare_data(config, tokenizer, place)
        batch = config.batch(world.size)
        self.built = build_model(
            config, tokenizer, world, local_rank=context.local_rank, accumulation=batch.accumulation
        )
        fill_weights(self.built, config, world)
        self.stepper = Stepper(
            model=self.built.language_model,
            optimizer=build_optimizer(self.built.module, config.optimizer),
            policy=self.built.policy,
            world=world,
            max_grad_norm=config.max_grad_norm,
        )
        self.state = TrainState(
            step=0,
            global_batch_size=batch.global_size,
            units_per_epoch=self.data.units_per_epoch,
            data_fingerprint=self.data.fingerprint,
        )

    def round(self, watch: Stopwatch) -> None:
        """Train ``max_steps`` further steps; the position in the data goes on."""
        journal = TimedJournal(
            context=self.context,
            settings=self.config.logging,
            tracker=Trackers(),
            device=self.world.device,
            work=work_of(self.built.module),
            peak_flops=None,
            watch=watch,
        )
        trainer = Trainer(
            context=self.context,
            config=self.config,
            world=self.world,
            data=self.data,
            stepper=self.stepper,
            schedule=LearningRate.of(self.config, self.data.total_steps),
            journal=journal,
            checkpointer=None,
            state=replace(self.state, step=0),
        )
        reason = trainer.train()
        assert not reason, f"asked to stop: {reason}"
        self.state = trainer.state
