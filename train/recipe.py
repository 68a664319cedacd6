"""The built-in recipe: supervised fine-tuning or pre-training of a Hugging Face causal LM.

``main`` is what ``launcher.worker.rank`` calls once signal handlers and heartbeat are in place.
"""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from typing import TYPE_CHECKING

import structlog
import torch
import torch.distributed as dist

from submitrain.config import RunConfig
from submitrain.errors import DataError
from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, Phase
from submitrain.rollbacks import Skips, read_rollbacks, skips_of, with_skips
from submitrain.signals import StopReason
from submitrain.train import faults
from submitrain.train.callbacks.anomaly import AnomalyHistory
from submitrain.train.callbacks.autosave import auto_save
from submitrain.train.callbacks.journal import Journal
from submitrain.train.callbacks.trackers import Trackers, open_trackers
from submitrain.train.checkpoint.checkpointer import Checkpointer
from submitrain.train.checkpoint.hf_weights import Pretrained
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.context import RankContext
from submitrain.train.data.prepare import DataContext, prepare_tokenizer
from submitrain.train.data.training import TrainingData, prepare_data
from submitrain.train.distributed.groups import World, join, set_threads
from submitrain.train.distributed.hardware import describe, peak_flops, work_of
from submitrain.train.export import export_pretrained, generate_sample
from submitrain.train.model.build import build_model, fill_weights
from submitrain.train.optim import LearningRate, build_optimizer
from submitrain.train.step import Stepper
from submitrain.train.trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = structlog.get_logger(__name__)

DECIDES_TRAINING = {
    "seed", "model", "dataset", "packed_sequence", "step_scheduler", "optimizer", "lr_scheduler",
    "peft", "clip_grad_norm", "training_optimizations",
}  # fmt: skip
"""Sections that a checkpoint's config hash covers: where it runs may change, what it trains not."""


class StopBeforeTraining(Exception):  # noqa: N818 - not an error
    """A stop was asked for while data was being prepared: there is nothing to save yet."""


def main(context: RankContext, config: RunConfig) -> int:
    """Train to the end (exit code 0), or to an agreed stop (85).

    Raises:
        UserError: configuration or data are wrong.
        RunError: the run failed.
    """
    threads = set_threads(context.local_world_size)
    context.enter(Phase.RENDEZVOUS)
    faults.at(faults.Moment.RENDEZVOUS)
    world = join(context, config.distributed)
    context.enter(Phase.DATA)
    try:
        tokenizer, data = _prepare_data(context, config, world)
    except StopBeforeTraining:
        context.events.write(Kind.STOPPED, reason=context.stop.reason.name.lower())
        return EXIT_STOPPED
    trackers = open_trackers(
        config, rank=context.rank, run_id=context.run_dir.run_id, folder=context.run_dir.root
    )
    code = 1
    try:
        trainer = setup(context, config, world, data, tokenizer, trackers, threads)
        if stop := trainer.train():
            context.events.write(
                Kind.STOPPED,
                step=trainer.state.step,
                reason=stop.name.lower(),
                signalled=context.stop.reason is StopReason.TERMINATED,
            )
            world.barrier()
            code = EXIT_STOPPED
        else:
            _finish(trainer, tokenizer)
            code = EXIT_FINISHED
    finally:
        trackers.close(code)
    return code


def _prepare_data(
    context: RankContext, config: RunConfig, world: World
) -> tuple[PreTrainedTokenizerBase, TrainingData]:
    def give_up_if_asked() -> None:
        if context.rank == 0:
            context.pulse()  # the others only wait
        if context.stop.reason:
            raise StopBeforeTraining

    def from_rank_0(value: str) -> str:
        values = [value]
        dist.broadcast_object_list(values, src=0, group=world.control)
        return values[0]

    where = DataContext(
        rank=context.rank,
        world_size=context.world_size,
        cache=context.run_dir.data_cache,
        poll=give_up_if_asked,
        from_rank_0=from_rank_0,
        barrier=world.barrier,
    )
    tokenizer = prepare_tokenizer(config, where)
    fixed = world.device.type == "cuda" or config.use_compile
    # Rank 0's reading counts: all ranks must leave the same data out.
    skips = Skips.parse(from_rank_0(skips_of(read_rollbacks(context.run_dir)).text))
    return tokenizer, prepare_data(config, tokenizer, where, pad_to_fixed=fixed, skips=skips)


def setup(
    context: RankContext,
    config: RunConfig,
    world: World,
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    trackers: Trackers,
    threads: int,
) -> Trainer:
    """Build model, optimizer and checkpointer, and restore the state of the newest checkpoint."""
    batch = config.batch(world.size)
    context.enter(Phase.BUILD)
    faults.at(faults.Moment.BUILD)
    built = build_model(
        config, tokenizer, world, local_rank=context.local_rank, accumulation=batch.accumulation
    )
    optimizer = build_optimizer(built.module, config.optimizer)
    stepper = Stepper(
        model=built.language_model,
        optimizer=optimizer,
        policy=built.policy,
        world=world,
        max_grad_norm=config.max_grad_norm,
        mark=context.mark,
    )

    context.enter(Phase.LOAD)
    checkpointer = None
    if config.checkpoint.enabled:
        checkpointer = Checkpointer(
            folder=context.run_dir.checkpoints,
            context=context,
            settings=config.checkpoint,
            config_hash=training_hash(config),
            group=world.checkpoints,
            pretrained=Pretrained(tokenizer, getattr(torch, config.model.torch_dtype)),
        )
    if config.peft is not None:  # adapters are saved without their base model
        fill_weights(built, config, world)
    state = checkpointer.load_latest(built.module, optimizer) if checkpointer else None
    if state is None and config.peft is None:
        fill_weights(built, config, world)
    state = _continue_from(state or TrainState(step=0), data, batch.global_size, trackers)
    context.step = state.step

    context.events.write(
        Kind.SETUP,
        device=describe(world.device),
        threads=threads,
        backend="nccl" if world.device.type == "cuda" else "gloo",
        parameters=built.parameters,
        attention=built.attention.implementation,
        dtype=config.model.torch_dtype,
        batch=batch.text,
        total_steps=data.total_steps,
        units_per_epoch=data.units_per_epoch,
        documents=data.documents,
        fill_rate=round(data.train.fill_rate, 4),
    )
    journal = Journal(
        context=context,
        settings=config.logging,
        tracker=trackers,
        device=world.device,
        work=work_of(built.module),
        peak_flops=peak_flops(world.device, config.model.torch_dtype),
    )
    return Trainer(
        context=context,
        config=config,
        world=world,
        data=data,
        stepper=stepper,
        schedule=LearningRate.of(config, data.planned_steps),
        journal=journal,
        checkpointer=checkpointer,
        state=state,
        autosave=auto_save(context, config, checkpointer),
        history=AnomalyHistory.of(state.extra),
    )


def training_hash(config: RunConfig) -> str:
    """Digest of everything in the configuration that decides what is trained."""
    values = config.model_dump(mode="json", by_alias=True, include=DECIDES_TRAINING)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _continue_from(
    state: TrainState, data: TrainingData, global_batch_size: int, trackers: Trackers
) -> TrainState:
    """The state to go on from; a position in other data would mean nothing.

    Raises:
        DataError: the checkpoint was made with other data, another order or other packing, or
            the record of what was left out is gone.
    """
    if state.step and state.data_fingerprint != data.fingerprint:
        raise DataError(
            f"dataset: the checkpoint of step {state.step} was made with other data, tokenizer, "
            f"packing, seed or shuffling (fingerprint {state.data_fingerprint[:8]}, now "
            f"{data.fingerprint[:8]}); restore them, or start a new run from the exported model"
        )
    return replace(
        state,
        global_batch_size=global_batch_size,
        units_per_epoch=data.units_per_epoch,
        data_fingerprint=data.fingerprint,
        extra=with_skips(state.extra, data.skips),
        wandb_id=trackers.run_id or state.wandb_id,
    )


def _finish(trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Export the trained model where that is wanted, and record the finish."""
    context, world = trainer.context, trainer.world
    if trainer.config.checkpoint.save_consolidated != "never":
        context.enter(Phase.EXPORT)
        faults.at(faults.Moment.EXPORT)
        _export(trainer, tokenizer)
    world.barrier()
    context.enter(Phase.EXIT)
    context.events.write(Kind.FINISH, step=trainer.state.step)
    faults.at(faults.Moment.EXIT)
    world.barrier()


def _export(trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the trained model for ``from_pretrained``, and let it write a sample (rank 0)."""
    config, context = trainer.config, trainer.context
    folder = context.run_dir.export
    began = time.monotonic()
    size = export_pretrained(
        trainer.stepper.model.module,
        tokenizer,
        folder,
        dtype=getattr(torch, config.model.torch_dtype),
        fence=context.fence,
    )
    if context.rank != 0:
        return
    export_s = round(time.monotonic() - began, 3)
    context.events.write(Kind.EXPORT, path=str(folder), bytes=size, export_s=export_s)
    if (sample := config.sample) is None:
        return
    try:
        text = generate_sample(
            folder,
            sample.prompt,
            sample.max_new_tokens,
            trust_remote_code=config.model.trust_remote_code,
        )
    except Exception as error:  # trained and exported already: a missing sample is no failure
        log.warning("no_sample", why=f"{type(error).__name__}: {error}")
        return
    context.events.write(Kind.SAMPLE, prompt=sample.prompt, text=text)
    log.info("sample", prompt=sample.prompt, text=text)
