"""Experiment trackers (Weights & Biases, TensorBoard, trackio), on rank 0.

Each tracker lives in a thread of its own behind a queue of limited length: a slow, hanging or
raising one costs a step nothing but an entry in that queue. A run keeps its id over all attempts:
a requeued run goes on in the same curves.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import structlog

from submitrain.config import RunConfig
from submitrain.config.sections import TensorboardConfig, TrackioConfig, WandbConfig
from submitrain.errors import ConfigError
from submitrain.signals import stop_signals_blocked

log = structlog.get_logger(__name__)

CLOSE_S = 15.0
"""How long the end of training waits for the last uploads of all trackers together."""
QUEUE_LENGTH = 10_000
"""Entries that a slow tracker may be behind; newer ones are dropped then, and counted."""

Metrics = Mapping[str, float | int]


@dataclass(frozen=True)
class TrackedRun:
    """The run, as trackers know it."""

    run_id: str
    folder: Path
    """The run folder."""
    config: Mapping[str, Any]


class Sink(Protocol):
    """An open tracker; may block and raise as it likes."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Send metrics of a step."""

    def close(self, exit_code: int) -> None:
        """Finish the run: 0 finished, 85 stopped for now."""


Opener = Callable[[TrackedRun], Sink]


class QueuedTracker:
    """One tracker in a thread of its own; it is opened there, too."""

    def __init__(self, name: str, opener: Opener, run: TrackedRun) -> None:
        self.name = name
        self.dropped = 0
        self._queue: queue.Queue[tuple[int, Metrics] | int] = queue.Queue(QUEUE_LENGTH)
        arguments = (opener, run)
        self.thread = threading.Thread(target=self._run, args=arguments, name=name, daemon=True)
        self.thread.start()

    def put(self, item: tuple[int, Metrics] | int) -> None:
        """Queue metrics of a step, or the exit code that ends it after what is queued."""
        try:
            self._queue.put_nowait(item)
        except queue.Full:
            self.dropped += 1

    def _run(self, opener: Opener, run: TrackedRun) -> None:
        # A tracker's failure, of whatever kind, must not end training.
        try:
            sink = opener(run)
            while not isinstance(item := self._queue.get(), int):
                sink.log(*item)
            sink.close(item)
        except BaseException as error:
            log.warning("tracker_failed", tracker=self.name, why=f"{type(error).__name__}: {error}")


@dataclass(frozen=True)
class Trackers:
    """Where metrics go besides the event files: any number of trackers, also none."""

    trackers: Sequence[QueuedTracker] = ()
    run_id: str | None = None
    """The run's id at Weights & Biases, the same after every requeue."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Send metrics of a step; returns at once."""
        for tracker in self.trackers:
            tracker.put((step, metrics))

    def close(self, exit_code: int) -> None:
        """Let all finish side by side, for ``CLOSE_S`` seconds at the most; log what was lost."""
        deadline = time.monotonic() + CLOSE_S
        for tracker in self.trackers:
            tracker.put(exit_code)
        for tracker in self.trackers:
            tracker.thread.join(max(0.0, deadline - time.monotonic()))
            if tracker.thread.is_alive() or tracker.dropped:
                log.warning(
                    "tracker_slow",
                    tracker=tracker.name,
                    dropped=tracker.dropped,
                    waited_s=CLOSE_S,
                )


def open_trackers(config: RunConfig, *, rank: int, run_id: str, folder: Path) -> Trackers:
    """The configured trackers on rank 0, none elsewhere.

    Raises:
        ConfigError: one is asked for whose package is not installed.
    """
    wandb, board, trackio = config.wandb, config.tensorboard, config.trackio
    openers: dict[str, Opener] = {}
    if wandb is not None and wandb.enabled and wandb.mode != "disabled":
        openers["wandb"] = partial(WandbSink, wandb)
    if board is not None and board.enabled:
        openers["tensorboard"] = partial(TensorboardSink, board)
    if trackio is not None and trackio.enabled:
        openers["trackio"] = partial(TrackioSink, trackio)
    if rank != 0 or not openers:
        return Trackers()
    for name in openers:
        if not find_spec(name):
            raise ConfigError(
                f"{name}: the package {name} is not installed; pip install 'submitrain[{name}]', "
                f"or set {name}.enabled: false"
            )
    run = TrackedRun(run_id, folder, config.model_dump(mode="json", by_alias=True))
    trackers = [QueuedTracker(name, opener, run) for name, opener in openers.items()]
    return Trackers(trackers, _wandb_id(run_id) if "wandb" in openers else None)


def _wandb_id(run_id: str) -> str:
    """The id at Weights & Biases, from the run folder's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", run_id)[-64:]


class WandbSink:
    """One run at Weights & Biases over all attempts."""

    def __init__(self, settings: WandbConfig, run: TrackedRun) -> None:
        import wandb

        options: dict[str, Any] = {
            "id": _wandb_id(run.run_id),
            "resume": "allow",
            "project": settings.project,
            "entity": settings.entity,
            "name": settings.name or run.run_id,
            "tags": settings.tags or None,
            "notes": settings.notes,
            "mode": settings.mode,
            "dir": str(run.folder),
            "config": run.config,
        }
        with stop_signals_blocked():  # W&B's own process must outlive a warning to this rank
            self._run = wandb.init(**{k: v for k, v in options.items() if v is not None})
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log({"step": step, **metrics})

    def close(self, exit_code: int) -> None:
        self._run.finish(exit_code=exit_code)


class TensorboardSink:
    """Event files for TensorBoard; every attempt appends a file to the same folder."""

    def __init__(self, settings: TensorboardConfig, run: TrackedRun) -> None:
        from torch.utils.tensorboard import SummaryWriter

        base = Path(settings.log_dir).expanduser() if settings.log_dir else None
        folder = base / run.run_id if base else run.folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), flush_secs=settings.flush_s)

    def log(self, step: int, metrics: Metrics) -> None:
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self, exit_code: int) -> None:
        self._writer.close()


class TrackioSink:
    """trackio: a local database, or a Space; a run of the same name is continued."""

    def __init__(self, settings: TrackioConfig, run: TrackedRun) -> None:
        if settings.dir is not None:
            os.environ["TRACKIO_DIR"] = str(Path(settings.dir).expanduser())
        import trackio

        with stop_signals_blocked():
            self._run = trackio.init(
                project=settings.project,
                name=settings.name or run.run_id,
                space_id=settings.space_id,
                config=dict(run.config),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self._finish = trackio.finish

    def log(self, step: int, metrics: Metrics) -> None:
        self._run.log(dict(metrics), step=step)

    def close(self, exit_code: int) -> None:
        self._finish()
