"""Adapters to Weights & Biases, TensorBoard and trackio; each runs in its tracker's thread.

A run keeps its id over all attempts: a requeued run goes on in the same curves.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from train.config import RunConfig
from train.config.outputs import TensorboardConfig, TrackioConfig, WandbConfig
from train.data.signals import stop_signals_blocked

Metrics = Mapping[str, float | int]


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
