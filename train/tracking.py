"""Experiment trackers: rank 0 sends its metrics; whatever goes wrong there, training goes on.

Each tracker lives in a thread of its own behind a queue of limited length: a slow, hanging or
raising one costs a step nothing but an entry in that queue. The adapters are in ``train.trackers``.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import structlog

from train.config import RunConfig
from train.errors import ConfigError

if TYPE_CHECKING:
    from train.trackers import Opener, Place

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
    from train.trackers import Place, chosen, wandb_id

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
