"""The built-in recipe: supervised fine-tuning or pre-training of a Hugging Face causal LM.

``main`` is what ``launcher.worker.rank`` calls once signal handlers and heartbeat are in place.
"""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import torch
import torch.distributed as dist

from submitrain.config import RunConfig
from submitrain.errors import DataError
from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, Phase
from submitrain.rollbacks import Skips, read_rollbacks, skips_of, with_skips
from submitrain.train import faults
from submitrain.train.callbacks.anomaly import remembered
from submitrain.train.callbacks.autosave import auto_save
from submitrain.train.callbacks.journal import Journal
from submitrain.train.callbacks.trackers import Tracker, open_tracker
from submitrain.train.checkpoint.checkpointer import Checkpointer
from submitrain.train.checkpoint.hf_weights import Pretrained
from submitrain.train.checkpoint.manifest import TrainState
from submitrain.train.context import RankContext
from submitrain.train.data.prepare import Place, prepare_tokenizer
from submitrain.train.data.training import TrainingData, prepare_data
from submitrain.train.distributed.groups import World, join, set_threads
from submitrain.train.distributed.hardware import describe, peak_flops, work_of
from submitrain.train.model.build import Built, build_model, fill_weights
from submitrain.train.optim import LearningRate, build_optimizer
from submitrain.train.step import Stepper
from submitrain.train.trainer import Training, record_stop, run

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


log = structlog.get_logger(__name__)

DECIDES_TRAINING = {
    "seed", "model", "dataset", "packed_sequence", "step_scheduler", "optimizer", "lr_scheduler",
    "peft", "clip_grad_norm", "training_optimizations",
}  # fmt: skip
"""Sections that a checkpoint's config hash covers: where it runs may change, what it trains not."""


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
        tokenizer, data = _data(context, config, world)
    except StopBeforeTraining:
        context.events.write(Kind.STOPPED, reason=context.stop.reason.name.lower())
        return EXIT_STOPPED
    tracker = open_tracker(
        config,
        rank=context.rank,
        run_id=context.run_dir.run_id,
        folder=context.run_dir.root,
    )
    code = 1
    try:
        training = _prepare(context, config, world, data, tokenizer, tracker, threads)
        code = _train(training, tokenizer)
    finally:
        tracker.close(code)
    return code


class StopBeforeTraining(Exception):  # noqa: N818 - not an error
    """A stop was asked for while data was being prepared: there is nothing to save yet."""


def _data(
    context: RankContext, config: RunConfig, world: World
) -> tuple[PreTrainedTokenizerBase, TrainingData]:
    def give_up_if_asked() -> None:
        if context.rank == 0:
            context.pulse()  # the others only wait
        if context.stop.reason:
            raise StopBeforeTraining

    def same(value: str) -> str:
        values = [value]
        dist.broadcast_object_list(values, src=0, group=world.control)
        return values[0]

    place = Place(
        rank=context.rank,
        world_size=context.world_size,
        cache=context.run_dir.data_cache,
        poll=give_up_if_asked,
        same=same,
        barrier=world.barrier,
    )
    tokenizer = prepare_tokenizer(config, place)
    fixed = world.device.type == "cuda" or config.use_compile
    # Rank 0's reading counts: all ranks must leave the same data out.
    skips = Skips.parse(place.same(skips_of(read_rollbacks(context.run_dir)).text))
    return tokenizer, prepare_data(config, tokenizer, place, pad_to_fixed=fixed, skips=skips)


def _prepare(
    context: RankContext,
    config: RunConfig,
    world: World,
    data: TrainingData,
    tokenizer: PreTrainedTokenizerBase,
    tracker: Tracker,
    threads: int,
) -> Training:
    """Model, optimizer and checkpoints, brought to where the run stands."""
    batch = config.batch(world.size)
    context.enter(Phase.BUILD)
    faults.at(faults.Moment.BUILD)
    built = build_model(
        config, tokenizer, world, local_rank=context.local_rank, accumulation=batch.accumulation
    )
    stepper = Stepper(
        model=built.language_model,
        optimizer=build_optimizer(built.module, config.optimizer),
        policy=built.policy,
        world=world,
        max_grad_norm=config.max_grad_norm,
        mark=context.mark,
    )
    context.enter(Phase.LOAD)
    checkpointer = _checkpointer(context, config, world, tokenizer)
    state = _restore(built, stepper, checkpointer, config, world) or TrainState(step=0)
    state = _checked(state, data, config, world, tracker)
    context.step = state.step
    _record_setup(context, world, built, data, config, threads)
    return Training(
        context=context,
        config=config,
        world=world,
        data=data,
        stepper=stepper,
        schedule=LearningRate.of(config, data.planned_steps),
        journal=Journal(
            context=context,
            settings=config.logging,
            tracker=tracker,
            device=world.device,
            work=work_of(built.module),
            peak_flops=peak_flops(world.device, config.model.torch_dtype),
        ),
        checkpointer=checkpointer,
        state=state,
        autosave=auto_save(context, config, checkpointer),
        memory=remembered(state.extra),
    )


def _checkpointer(
    context: RankContext, config: RunConfig, world: World, tokenizer: PreTrainedTokenizerBase
) -> Checkpointer | None:
    if not config.checkpoint.enabled:
        return None
    return Checkpointer(
        folder=context.run_dir.checkpoints,
        context=context,
        settings=config.checkpoint,
        config_hash=training_hash(config),
        group=world.checkpoints,
        pretrained=_pretrained(config, tokenizer),
    )


def _pretrained(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> Pretrained:
    return Pretrained(tokenizer=tokenizer, dtype=getattr(torch, config.model.torch_dtype))


def training_hash(config: RunConfig) -> str:
    """Digest of everything in the configuration that decides what is trained."""
    values = config.model_dump(mode="json", by_alias=True, include=DECIDES_TRAINING)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _restore(
    built: Built,
    stepper: Stepper,
    checkpointer: Checkpointer | None,
    config: RunConfig,
    world: World,
) -> TrainState | None:
    """Fill the model from the newest verified checkpoint, else with its first values.

    Adapters are saved without their base model: that is loaded in any case.
    """
    if config.peft is not None:
        fill_weights(built, config, world)
    state = checkpointer.load_latest(built.module, stepper.optimizer) if checkpointer else None
    if state is None and config.peft is None:
        fill_weights(built, config, world)
    return state


def _checked(
    state: TrainState, data: TrainingData, config: RunConfig, world: World, tracker: Tracker
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
    return TrainState(
        **{
            **state.as_json(),
            "global_batch_size": config.batch(world.size).global_size,
            "units_per_epoch": data.units_per_epoch,
            "data_fingerprint": data.fingerprint,
            "extra": with_skips(state.extra, data.skips),
            "wandb_id": tracker.run_id or state.wandb_id,
        }  # type: ignore[arg-type]
    )


def _record_setup(
    context: RankContext,
    world: World,
    built: Built,
    data: TrainingData,
    config: RunConfig,
    threads: int,
) -> None:
    context.events.write(
        Kind.SETUP,
        device=describe(world.device),
        threads=threads,
        backend="nccl" if world.device.type == "cuda" else "gloo",
        parameters=built.parameters,
        attention=built.attention.implementation,
        dtype=config.model.torch_dtype,
        batch=config.batch(world.size).text,
        total_steps=data.total_steps,
        units_per_epoch=data.units_per_epoch,
        documents=data.documents,
        fill_rate=round(data.train.fill_rate, 4),
    )


def _train(training: Training, tokenizer: PreTrainedTokenizerBase) -> int:
    context = training.context
    if reason := run(training):
        record_stop(training, reason)
        training.world.barrier()
        return EXIT_STOPPED
    if training.config.checkpoint.save_consolidated != "never":
        context.enter(Phase.EXPORT)
        faults.at(faults.Moment.EXPORT)
        _export(training, tokenizer)
    training.world.barrier()
    context.enter(Phase.EXIT)
    context.events.write(Kind.FINISH, step=training.state.step)
    faults.at(faults.Moment.EXIT)
    training.world.barrier()
    return EXIT_FINISHED


def _export(training: Training, tokenizer: PreTrainedTokenizerBase) -> None:
    """Write the trained model for ``from_pretrained``, and let it write a sample (rank 0)."""
    from submitrain.train.export import export_pretrained, generate_sample

    config, context = training.config, training.context
    folder: Path = context.run_dir.export
    began = time.monotonic()
    size = export_pretrained(
        training.stepper.model.module,
        tokenizer,
        folder,
        consolidated=True,
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
