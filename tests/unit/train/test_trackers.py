"""Trackers: one run over all attempts; what goes wrong there costs training nothing."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from submitrain.config import RunConfig
from submitrain.errors import ConfigError
from submitrain.train.callbacks import trackers as tracking
from submitrain.train.callbacks.trackers import (
    QueuedTracker,
    TrackedRun,
    Trackers,
    open_trackers,
)
from tests.paths import REPOSITORY

ROOT = REPOSITORY


def opened(folder: Path, rank: int = 0, **sections: Any) -> Any:
    return open_trackers(RunConfig(**sections), rank=rank, run_id="r:1", folder=folder)


def test_only_rank_0_tracks_and_only_where_asked(tmp_path: Path) -> None:
    assert not opened(tmp_path).trackers
    assert not opened(tmp_path, rank=1, wandb={}, tensorboard={}, trackio={}).trackers
    off = {"enabled": False}
    assert not opened(tmp_path, wandb=off, tensorboard=off, trackio=off).trackers
    assert not opened(tmp_path, wandb={"mode": "disabled"}).trackers


@pytest.mark.parametrize("name", ["wandb", "tensorboard", "trackio"])
def test_a_missing_package_is_refused_with_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("submitrain.train.callbacks.trackers.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=rf"pip install 'submitrain\[{name}\]'"):
        opened(tmp_path, **{name: {}})


@pytest.mark.filterwarnings("ignore")
def test_wandb_keeps_one_run_id_over_attempts(tmp_path: Path) -> None:
    ids = set()
    for attempt in (1, 2):
        tracker = opened(tmp_path, wandb={"project": "test", "mode": "offline"})
        tracker.log(attempt, {"train/loss": 1.0})
        tracker.close(0)
        ids.add(tracker.run_id)
    assert ids == {"r-1"}
    assert list((tmp_path / "wandb").glob("offline-run-*-r-1"))


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_goes_on_in_the_same_curve(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    for attempt in (1, 2):
        tracker = opened(tmp_path, tensorboard={"log_dir": str(tmp_path / "all")})
        tracker.log(attempt, {"train/loss": 1.0 / attempt})
        tracker.close(85)
    found = EventAccumulator(str(tmp_path / "all" / "r:1")).Reload()
    assert [(one.step, one.value) for one in found.Scalars("train/loss")] == [(1, 1.0), (2, 0.5)]


TRACKIO_ATTEMPT = """
import sys
from pathlib import Path
from submitrain.config import RunConfig
from submitrain.train.callbacks.trackers import open_trackers
folder, step = Path(sys.argv[1]), int(sys.argv[2])
config = RunConfig(trackio={"project": "p", "dir": str(folder)}, seed=5)
tracker = open_trackers(config, rank=0, run_id="r:1", folder=folder)
tracker.log(step, {"train/loss": 1.0 / step})
tracker.close(0)
"""


def test_trackio_goes_on_in_the_same_run(tmp_path: Path) -> None:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    for attempt in ("1", "2"):
        command = [sys.executable, "-c", TRACKIO_ATTEMPT, str(tmp_path), attempt]
        subprocess.run(command, check=True, env=env, capture_output=True, timeout=120)
    with closing(sqlite3.connect(tmp_path / "p.db")) as base:
        rows = base.execute("select run_id, run_name, step, metrics from metrics").fetchall()
    assert len({run for run, *_ in rows}) == 1
    assert [(name, step, json.loads(values)) for _, name, step, values in rows] == [
        ("r:1", 1, {"train/loss": 1.0}), ("r:1", 2, {"train/loss": 0.5}),
    ]  # fmt: skip


class Sink:
    """A tracker that fails as it is told to, with a gate to hang at."""

    def __init__(self, fails: str, gate: threading.Event) -> None:
        self.fails, self.gate = fails, gate
        self.got: list[int] = []
        self._at("open")

    def log(self, step: int, metrics: Any) -> None:
        self._at("log")
        self.got.append(step)

    def close(self, exit_code: int) -> None:
        self._at("close")

    def _at(self, place: str) -> None:
        if self.fails == f"raise at {place}":
            raise SystemExit("a tracker may even do this")
        if self.fails == f"hang at {place}":
            self.gate.wait(60)


@pytest.mark.parametrize("how", ["raise", "hang"])
@pytest.mark.parametrize("place", ["open", "log", "close"])
def test_a_tracker_that_fails_or_hangs_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, place: str
) -> None:
    monkeypatch.setattr(tracking, "CLOSE_S", 0.5)
    monkeypatch.setattr(tracking, "QUEUE_LENGTH", 3)
    gate, healthy = threading.Event(), []

    def open_healthy(_: TrackedRun) -> Sink:
        healthy.append(Sink("", gate))
        return healthy[0]

    where = TrackedRun("r", tmp_path, {})
    bad = QueuedTracker("bad", lambda _: Sink(f"{how} at {place}", gate), where)
    both = Trackers([bad, QueuedTracker("good", open_healthy, where)], None)
    for step in range(1, 9):
        both.log(step, {"loss": 1.0})
        deadline = time.monotonic() + 30
        while len(healthy) == 0 or healthy[0].got != list(range(1, step + 1)):
            assert time.monotonic() < deadline
            time.sleep(0.001)
    both.close(0)
    assert healthy[0].got == [1, 2, 3, 4, 5, 6, 7, 8]
    assert bad.dropped > 0 or place == "close"
    gate.set()
