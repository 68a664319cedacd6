"""RunContext: what a user's training function is given. Imports no torch.

    from submitrain import RunContext

    def train(ctx: RunContext, steps: int) -> None:
        ctx.init_process_group()
        ...
        while step < steps and not ctx.should_stop(step):
            ...
            ctx.log(step=step, loss=loss)
        ctx.publish_checkpoint(step, write)

See docs/own-training-code.md for the contract.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat

import structlog

from submitrain.events import Kind, Phase
from submitrain.signals import StopReason
from submitrain.train import faults
from submitrain.train.checkpoint.manifest import Checkpoint
from submitrain.train.data.order import UnitOrder

if TYPE_CHECKING:
    import torch

    from submitrain.config import RunConfig
    from submitrain.train.callbacks.trackers import Trackers
    from submitrain.train.context import RankContext
    from submitrain.train.user_function.saving import Saving


@dataclass(frozen=True)
class DataOrder:
    """The endless stream of samples of one data set, as this rank sees it.

    A pure function of seed, sample count and step. So a resumed run goes on where it stood, and
    at another number of ranks a step still consumes the same samples.
    """

    units: UnitOrder
    rank: int
    world_size: int

    def of_step(self, step: int, global_batch_size: int) -> list[int]:
        """This rank's sample numbers for the step after ``step`` finished ones.

        Over all ranks ``global_batch_size`` samples; the shares differ by one at the most, so some
        are empty when there are more ranks than samples.
        """
        start = step * global_batch_size
        found = self.units.units(start, start + global_batch_size)
        return [sample for _, sample in found[self.rank :: self.world_size]]

    def epoch_of(self, step: int, global_batch_size: int) -> int:
        """Whole passes over the data before the step after ``step`` finished ones."""
        return step * global_batch_size // self.units.count


log = structlog.get_logger(__name__)

PhaseName = Literal["data", "build", "load", "validate", "export"]
RESERVED = frozenset(
    {"v", "kind", "t", "rank", "attempt", "job_id", "dropped", "step", "loss", "step_s"}
    | {"loss_hex", "grad_norm_hex", "mem_bytes"}
)
"""Names in a step's event that are not the function's to set."""


class RunContext:
    """One rank of one attempt, and the means to survive.

    Methods marked *collective* have to be called by all ranks, in the same order.
    """

    def __init__(
        self, context: RankContext, config: RunConfig, saving: Saving, tracker: Trackers
    ) -> None:
        self._context = context
        self._config = config
        self._saving = saving
        self._peers = saving.peers
        self._tracker = tracker
        self._stop = StopReason.NONE
        self._finished = self._logged = 0
        self._since = time.monotonic()
        self._resumed = self._stepped = False

    @property
    def rank(self) -> int:
        """This rank's number, from 0."""
        return self._context.rank

    @property
    def world_size(self) -> int:
        """Number of ranks in this attempt; another one may have fewer or more."""
        return self._context.world_size

    @property
    def local_rank(self) -> int:
        """This rank's number on its node."""
        return self._context.local_rank

    @property
    def device(self) -> torch.device:
        """This rank's GPU (the current device already), or the CPU."""
        return self._peers.device

    @property
    def run_folder(self) -> Path:
        """The run folder, shared by all ranks and attempts."""
        return self._context.run_dir.root

    @property
    def attempt(self) -> int:
        """Number of this attempt, from 1; a restart or a requeue is the next one."""
        return self._context.attempt

    @property
    def seed(self) -> int:
        """The configuration's top-level ``seed``."""
        return self._config.seed

    @property
    def stop_reason(self) -> StopReason:
        """What ``should_stop`` agreed on so far."""
        return self._stop

    @property
    def finished_steps(self) -> int:
        """Finished steps as far as this rank knows."""
        return max(self._finished, self._context.step)

    def init_process_group(self) -> None:
        """Form torch's default process group: nccl on GPUs, else gloo. *Collective.*

        Does nothing where it exists already; torch's own ``init_process_group()`` works as well.
        """
        self._peers.connect()

    def should_stop(self, step: int | None = None) -> bool:
        """Whether to save and return now; the same answer on all ranks. *Collective.*

        Call it between optimizer steps, best before each one: it is also the sign that this rank
        advances. ``step`` is the number of finished steps; the last one logged if it is left out.
        """
        if self._stop:
            return True
        self._finished = max(self._finished, step or 0)
        self._context.mark()
        reason, finished = self._peers.highest(int(self._context.stop.reason), self._finished)
        self._context.step = max(self._context.step, finished)
        self._context.mark()
        self._stop = StopReason(reason)
        if self._stop:
            return True
        self._context.enter(Phase.STEP if self._stepped else Phase.FIRST_STEP)
        if not self._stepped:
            self._stepped, self._since = True, time.monotonic()
            faults.at(faults.Moment.FIRST_STEP)
        faults.at(faults.Moment.STEP)
        return False

    def log(self, *, step: int, loss: SupportsFloat, **metrics: SupportsFloat) -> None:
        """Record a finished step (the first is 1); rank 0's word counts, others may call it.

        ``lr``, ``grad_norm``, ``tokens`` and ``tokens_per_s`` are shown by status and report;
        other metrics are kept and sent to trackers.

        Raises:
            ValueError: a metric has the name of a field of ours.
        """
        if taken := sorted(RESERVED & set(metrics)):
            raise ValueError(f"ctx.log: {', '.join(taken)} is recorded by us; choose another name")
        self._finished = max(self._finished, step)
        if self.rank != 0 or step % self._config.logging.log_every_steps:
            return
        from submitrain.train.distributed.hardware import memory_bytes

        now = time.monotonic()
        step_s = (now - self._since) / max(1, step - self._logged)
        self._since, self._logged = now, step
        known: dict[str, Any] = {"loss": _number(loss)}
        known |= {name: _number(value) for name, value in metrics.items()}
        if "tokens" in metrics and "tokens_per_s" not in metrics and step_s > 0:
            known["tokens_per_s"] = round(known["tokens"] / step_s, 2)
        known |= {"step_s": round(step_s, 6), "mem_bytes": memory_bytes(self.device)}
        exact = {
            f"{name}_hex": known[name].hex() for name in ("loss", "grad_norm") if name in known
        }
        self._context.events.write(Kind.STEP, step=step, **known, **exact)
        self._tracker.log(step, {f"train/{name}": value for name, value in known.items()})
        log.info("step", step=step, loss=round(known["loss"], 4))

    def log_validation(self, *, step: int, loss: SupportsFloat) -> None:
        """Record a validation loss after ``step`` finished steps (rank 0)."""
        if self.rank != 0:
            return
        value = _number(loss)
        self._context.events.write(Kind.VALIDATION, step=step, loss=value, loss_hex=value.hex())
        self._tracker.log(step, {"val/loss": value})
        log.info("validation", step=step, loss=round(value, 4))

    def announce(self, *, total_steps: int | None = None, parameters: int | None = None) -> None:
        """Say how many steps the run will have: status and report then know how much is left."""
        known = {"total_steps": total_steps, "parameters": parameters}
        self._context.events.write(Kind.SETUP, **{k: v for k, v in known.items() if v is not None})

    def progress(self) -> None:
        """Say that this rank works, in the middle of something long; costs next to nothing."""
        self._context.pulse()

    @contextmanager
    def phase(self, name: PhaseName) -> Iterator[None]:
        """Be busy with something that has a time budget of its own (``resilience.hang``)."""
        before = self._context.phase
        self._context.enter(Phase(name))
        try:
            yield
        finally:
            self._context.enter(before)
            self._since = time.monotonic()

    def latest_checkpoint(self) -> Checkpoint | None:
        """The newest checkpoint that is whole; None before the first. *Collective.*

        All files are hashed, a share by each rank; a damaged one is skipped, with an event.

        Raises:
            CheckpointError: there are checkpoints, and none of them is whole.
        """
        if not self._config.checkpoint.enabled:
            return None
        began = time.monotonic()
        with self._busy(Phase.LOAD):
            found = self._saving.latest()
            if found is not None and not self._resumed:
                self._resumed = True
                self._finished = self._logged = self._context.step = found.step
                if self.rank == 0:
                    path, load_s = str(found.folder), round(time.monotonic() - began, 3)
                    events = self._context.events
                    events.write(Kind.RESUME, step=found.step, path=path, load_s=load_s)
        return found

    def publish_checkpoint(
        self,
        step: int,
        write: Callable[[Path], object] | Path,
        *,
        extra: Mapping[str, str | int | float | bool | None] | None = None,
    ) -> Checkpoint | None:
        """Save what ``step`` finished steps made; returns when it is on disk. *Collective.*

        ``write`` is called on every rank with the same empty folder and puts files of its own
        there; or it is a folder that was written already, whose files are moved. ``extra``: plain
        values that ``latest_checkpoint`` gives back.

        Returns None when checkpoints are turned off, or when the disk refused: that is recorded,
        and training may go on.

        Raises:
            FencedError: a newer attempt owns the run folder.
        """
        if not self._config.checkpoint.enabled:
            return None
        newest = self._saving.newest
        if newest is not None and newest.step == step:
            return newest
        self._finished = max(self._finished, step)
        self._context.step = max(self._context.step, step)
        with self._busy(Phase.SAVE):
            return self._saving.publish(step, write, extra or {})

    def data_order(self, samples: int, *, shuffle: bool = True) -> DataOrder:
        """Which of ``samples`` samples each step consumes: a pure function of seed and step."""
        return DataOrder(UnitOrder(samples, self.seed, shuffle), self.rank, self.world_size)

    def reseed(self, step: int) -> None:
        """Make random numbers (Python, numpy, torch) a function of seed, ``step`` and rank.

        Before each step: then dropout need not be saved to be the same after a restart.
        """
        from submitrain.train.step import reseed

        reseed(self.seed, step, self.rank)

    @contextmanager
    def _busy(self, phase: Phase) -> Iterator[None]:
        before = self._context.phase
        self._context.enter(phase)
        yield
        # Not after an error: the phase in which it happened is part of the failure record.
        self._context.enter(before)
        self._since = time.monotonic()


def _number(value: SupportsFloat) -> float:
    """A plain float; ``float`` of a tensor with a gradient would warn, its ``item`` does not."""
    item = getattr(value, "item", None)
    return float(item() if item is not None else value)
