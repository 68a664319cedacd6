"""When a rank ends itself: never before its supervisor would have ended it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from submitrain.config import RunConfig
from submitrain.events import Kind, Phase
from submitrain.launcher.worker.watchdog import Watchdog
from submitrain.run_folder import RunDir
from submitrain.train.context import RankContext


class Ended(Exception):  # noqa: N818 - the end of a process
    """The rank would be gone now."""


class EagerWatchdog(Watchdog):
    """A watchdog that says when it ends its process."""

    now = 1000.0

    def _end(self, ceiling_s: float) -> None:
        raise Ended(f"{ceiling_s:.0f}")

    def pass_time(self, seconds: float) -> None:
        """Look twice a second."""
        for _ in range(int(2 * seconds)):
            self.now += 0.5
            self.poll(self.now)


@pytest.fixture
def watchdog(tmp_path: Path) -> Iterator[EagerWatchdog]:
    """The watchdog of rank 1, whose limit for a validation is 12 s."""
    run_dir = RunDir(tmp_path)
    attempt = run_dir.claim_attempt()
    limits = {"silence_s": 0, "validate_s": 12}
    config = RunConfig.model_validate({"resilience": {"hang": limits}})
    context = RankContext(run_dir, attempt, "1", 1, 2, 1, 2)
    context.events.path.parent.mkdir(exist_ok=True)
    context.enter(Phase.VALIDATE)
    with (tmp_path / "stacks").open("w") as stacks:
        found = EagerWatchdog(context, config, stacks)
        found.clock.hold(found.now)
        yield found


def test_a_rank_ends_itself_some_time_after_twice_its_budget(watchdog: EagerWatchdog) -> None:
    watchdog.pass_time(38)
    with pytest.raises(Ended, match="39"):
        watchdog.pass_time(3)


def test_a_rank_waits_for_what_the_supervisor_has_learned(watchdog: EagerWatchdog) -> None:
    """Rank 0's slowest validation allows 5 x 6 s: this rank's own first one tells it nothing."""
    context = watchdog.context
    rank0 = RankContext(context.run_dir, context.attempt, "1", 0, 2, 0, 2)
    rank0.events.write(Kind.VALIDATION, step=5, val_s=6.0)
    watchdog.pass_time(74)
    with pytest.raises(Ended, match="75"):
        watchdog.pass_time(3)


def test_nobody_ends_itself_while_its_record_waits_for_the_file_system(
    watchdog: EagerWatchdog, monkeypatch: pytest.MonkeyPatch
) -> None:
    going = threading.Event()
    monkeypatch.setattr("submitrain.events.append_line", lambda *_: going.wait(60))
    monkeypatch.setattr("submitrain.launcher.worker.watchdog.STALLED_S", 0.0)
    writer = threading.Thread(target=watchdog.context.events.write, args=(Kind.STEP,))
    writer.start()
    while not watchdog.context.events.stalled_s():
        writer.join(0.001)
    watchdog.pass_time(500)
    going.set()
    writer.join()
    watchdog.pass_time(38)
    with pytest.raises(Ended):
        watchdog.pass_time(3)
