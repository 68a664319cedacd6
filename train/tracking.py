"""Experiment trackers: rank 0 sends its metrics; whatever goes wrong there, training goes on."""

from __future__ import annotations

import queue
import re
import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import structlog

from train.config.sections import WandbConfig
from train.data.signals import stop_signals_blocked
from train.errors import ConfigError

log = structlog.get_logger(__name__)

CLOSE_S = 15.0
"""How long the end of training waits for the tracker's last upload."""

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


class WandbTracker:
    """Weights & Biases in a thread of its own: a slow or absent network never delays a step.

    The run id is derived from the run folder's name, so every attempt continues the same W&B run.
    """

    def __init__(self, settings: WandbConfig, *, run_id: str, folder: Path, config: object) -> None:
        self.run_id: str | None = re.sub(r"[^A-Za-z0-9_-]", "-", run_id)[-64:]
        self._queue: queue.SimpleQueue[tuple[int, Metrics] | int] = queue.SimpleQueue()
        self._options: dict[str, Any] = {
            "id": self.run_id,
            "resume": "allow",
            "project": settings.project,
            "entity": settings.entity,
            "name": settings.name or run_id,
            "tags": settings.tags or None,
            "notes": settings.notes,
            "mode": settings.mode,
            "dir": str(folder),
            "config": config,
        }
        self._thread = threading.Thread(target=self._run, name="wandb", daemon=True)
        self._thread.start()

    def log(self, step: int, metrics: Metrics) -> None:
        """Queue metrics of a step."""
        self._queue.put((step, metrics))

    def close(self, exit_code: int) -> None:
        """Let W&B finish its upload, for ``CLOSE_S`` seconds at the most."""
        self._queue.put(exit_code)
        self._thread.join(CLOSE_S)
        if self._thread.is_alive():
            log.warning("wandb_slow", waited_s=CLOSE_S, next_step="wandb sync in the run folder")

    def _run(self) -> None:
        # A tracker's failure, of whatever kind, must not end training.
        try:
            import wandb

            options = {k: v for k, v in self._options.items() if v is not None}
            with stop_signals_blocked():  # W&B's own process must outlive a warning to this rank
                run = wandb.init(**options)
            run.define_metric("step")
            run.define_metric("*", step_metric="step")
            while not isinstance(item := self._queue.get(), int):
                step, metrics = item
                run.log({"step": step, **metrics})
            run.finish(exit_code=item)
        except Exception as error:
            log.warning("wandb_failed", error=f"{type(error).__name__}: {error}")


def open_tracker(
    settings: WandbConfig | None, *, rank: int, run_id: str, folder: Path, config: object
) -> Tracker:
    """The configured tracker on rank 0, none elsewhere.

    Raises:
        ConfigError: wandb is asked for and not installed.
    """
    if settings is None or not settings.enabled or settings.mode == "disabled" or rank != 0:
        return NoTracker()
    if not find_spec("wandb"):
        raise ConfigError(
            "wandb: the package wandb is not installed; pip install 'submitrain[wandb]', "
            "or set wandb.enabled: false"
        )
    return WandbTracker(settings, run_id=run_id, folder=folder, config=config)
