"""Experiment trackers: rank 0 sends its metrics; whatever goes wrong there, training goes on.

Each tracker lives in a thread of its own behind a queue of limited length: a slow, hanging or
raising one costs a step nothing but an entry in that queue. The adapters are in
``train.callbacks.trackers``.

Adapters to Weights & Biases, TensorBoard and trackio; each runs in its tracker's thread.

A run keeps its id over all attempts: a requeued run goes on in the same curves.
"""

from __future__ import annotations

import os
import queue
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import structlog

from submitrain.config import RunConfig
from submitrain.config.sections import TensorboardConfig, TrackioConfig, WandbConfig
from submitrain.errors import ConfigError
from submitrain.processes import stop_signals_blocked

if TYPE_CHECKING:
    pass


log = structlog.get_logger(__name__)

CLOSE_S = 15.0
"""How long the end of training waits for the last uploads of all trackers together."""
QUEUE_LENGTH = 10_000
"""Entries that a slow tracker may be behind; newer ones are dropped then, and counted."""

Metrics = Mapping[str, float | int]


class Tracker(Protocol):
    """Where metrics go besides the event files."""

    @property
    def run_id(self) -> str | None:
        """The tracker's own id of this run, the same after every requeue."""

    def log(self, step: int, metrics: Metrics) -> None:
        """Send metrics of a step; returns at once."""

    def close(self, exit_code: int) -> None:
        """Finish; waits a limited time."""


class NoTracker:
    """Sends nothing."""

    run_id: str | None = None

    def log(self, step: int, metrics: Metrics) -> None:
        """Do nothing."""

    def close(self, exit_code: int) -> None:
        """Do nothing."""


class QueuedTracker:
    """One tracker in a thread of its own; it is opened there, too."""

    def __init__(self, name: str, opener: Opener, place: Place) -> None:
        self.name = name
        self.dropped = 0
        self._opener, self._place = opener, place
        self._queue: queue.Queue[tuple[int, Metrics] | int] = queue.Queue(QUEUE_LENGTH)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Metrics) -> None:
        """Queue metrics of a step."""
        try:
            self._queue.put_nowait((step, metrics))
        except queue.Full:
            self.dropped += 1

    def end(self, exit_code: int) -> None:
        """Ask it to finish after what is queued."""
        try:
            self._queue.put_nowait(exit_code)
        except queue.Full:
            self.dropped += 1

    def wait(self, timeout_s: float) -> None:
        """Wait for its end, and say what was lost."""
        self._thread.join(max(0.0, timeout_s))
        if self._thread.is_alive() or self.dropped:
            log.warning("tracker_slow", tracker=self.name, dropped=self.dropped, waited_s=CLOSE_S)

    def _run(self) -> None:
        # A tracker's failure, of whatever kind, must not end training.
        try:
            sink = self._opener(self._place)
            while not isinstance(item := self._queue.get(), int):
                sink.log(*item)
            sink.close(item)
        except BaseException as error:
            log.warning("tracker_failed", tracker=self.name, why=f"{type(error).__name__}: {error}")


class Trackers:
    """Several trackers as one."""

    def __init__(self, trackers: Sequence[QueuedTracker], run_id: str | None) -> None:
        self.run_id = run_id
        self._trackers = trackers

    def log(self, step: int, metrics: Metrics) -> None:
        """Queue metrics of a step for all of them."""
        for tracker in self._trackers:
            tracker.log(step, metrics)

    def close(self, exit_code: int) -> None:
        """Let all finish side by side, for ``CLOSE_S`` seconds at the most."""
        deadline = time.monotonic() + CLOSE_S
        for tracker in self._trackers:
            tracker.end(exit_code)
        for tracker in self._trackers:
            tracker.wait(deadline - time.monotonic())


def open_tracker(config: RunConfig, *, rank: int, run_id: str, folder: Path) -> Tracker:
    """The configured trackers on rank 0, none elsewhere.

    Raises:
        ConfigError: one is asked for whose package is not installed.
    """

    found = list(chosen(config)) if rank == 0 else []
    for name, _ in found:
        if not find_spec(name):
            raise ConfigError(
                f"{name}: the package {name} is not installed; pip install 'submitrain[{name}]', "
                f"or set {name}.enabled: false"
            )
    if not found:
        return NoTracker()
    place = Place(run_id, folder, config.model_dump(mode="json", by_alias=True))
    trackers = [QueuedTracker(name, opener, place) for name, opener in found]
    return Trackers(trackers, wandb_id(run_id) if "wandb" in dict(found) else None)


@dataclass(frozen=True)
class Place:
    """The run, as trackers are told of it."""

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


Opener = Callable[[Place], Sink]


def chosen(config: RunConfig) -> Iterator[tuple[str, Opener]]:
    """The trackers that a configuration asks for, by the name of their package."""
    wandb, board, trackio = config.wandb, config.tensorboard, config.trackio
    if wandb is not None and wandb.enabled and wandb.mode != "disabled":
        yield "wandb", partial(WandbSink, wandb)
    if board is not None and board.enabled:
        yield "tensorboard", partial(TensorboardSink, board)
    if trackio is not None and trackio.enabled:
        yield "trackio", partial(TrackioSink, trackio)


def wandb_id(run_id: str) -> str:
    """The id at Weights & Biases, from the run folder's name."""
    return re.sub(r"[^A-Za-z0-9_-]", "-", run_id)[-64:]


class WandbSink:
    """One run at Weights & Biases over all attempts."""

    def __init__(self, settings: WandbConfig, place: Place) -> None:
        import wandb

        options: dict[str, Any] = {
            "id": wandb_id(place.run_id),
            "resume": "allow",
            "project": settings.project,
            "entity": settings.entity,
            "name": settings.name or place.run_id,
            "tags": settings.tags or None,
            "notes": settings.notes,
            "mode": settings.mode,
            "dir": str(place.folder),
            "config": place.config,
        }
        with stop_signals_blocked():  # W&B's own process must outlive a warning to this rank
            self._run = wandb.init(**{k: v for k, v in options.items() if v is not None})
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def log(self, step: int, metrics: Metrics) -> None:
        """Send metrics of a step."""
        self._run.log({"step": step, **metrics})

    def close(self, exit_code: int) -> None:
        """Finish the upload."""
        self._run.finish(exit_code=exit_code)


class TensorboardSink:
    """Event files for TensorBoard; every attempt appends a file to the same folder."""

    def __init__(self, settings: TensorboardConfig, place: Place) -> None:
        from torch.utils.tensorboard import SummaryWriter

        base = Path(settings.log_dir).expanduser() if settings.log_dir else None
        folder = base / place.run_id if base else place.folder / "tensorboard"
        self._writer = SummaryWriter(str(folder), flush_secs=settings.flush_s)

    def log(self, step: int, metrics: Metrics) -> None:
        """Add a scalar for every metric."""
        for name, value in metrics.items():
            self._writer.add_scalar(name, value, global_step=step)

    def close(self, exit_code: int) -> None:
        """Write what is left."""
        self._writer.close()


class TrackioSink:
    """trackio: a local database, or a Space; a run of the same name is continued."""

    def __init__(self, settings: TrackioConfig, place: Place) -> None:
        if settings.dir is not None:
            os.environ["TRACKIO_DIR"] = str(Path(settings.dir).expanduser())
        import trackio

        with stop_signals_blocked():
            self._run = trackio.init(
                project=settings.project,
                name=settings.name or place.run_id,
                space_id=settings.space_id,
                config=dict(place.config),
                resume="allow",
                embed=False,
                auto_log_cpu=False,
                auto_log_gpu=False,
            )
        self._finish = trackio.finish

    def log(self, step: int, metrics: Metrics) -> None:
        """Send metrics of a step."""
        self._run.log(dict(metrics), step=step)

    def close(self, exit_code: int) -> None:
        """Write what is left."""
        self._finish()
