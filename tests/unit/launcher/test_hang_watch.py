"""What the supervisor concludes from event files, by its own clock."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from submitrain.config import RunConfig
from submitrain.events import Kind, Phase, append_line, read_events
from submitrain.launcher.supervisor.hang import Hang
from submitrain.launcher.supervisor.hang_watch import POLL_EVERY_S, HangWatch
from submitrain.launcher.supervisor.rank_events import RankRecords
from submitrain.run_folder import RunDir
from submitrain.train.context import RankContext


class Ranks:
    """Two ranks that write real events, and a watch whose time the test lets pass."""

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run_dir = RunDir(root)
        attempt = self.run_dir.claim_attempt()
        self.records = RankRecords(self.run_dir, attempt, 2)
        config = RunConfig.model_validate({"resilience": {"hang": {"silence_s": 60}}})
        self.watch = HangWatch(self.run_dir, config, attempt, self.records)
        self.now = 1000.0
        monkeypatch.setattr(
            "submitrain.launcher.supervisor.hang_watch.time.monotonic", lambda: self.now
        )
        self.ranks = [
            RankContext(self.run_dir, attempt, "1", rank, 2, rank, 2) for rank in range(2)
        ]
        for rank in self.ranks:
            rank.events.write(Kind.START, host=f"node{rank.rank + 1}")
            rank.enter(Phase.STEP)

    def dump(self, rank: int, file: str, function: str) -> None:
        """What this rank's stack dump says, and that the others wait for it."""
        waits = "/env/site-packages/torch/distributed/distributed_c10d.py", "wait"
        for one in range(2):
            place, name = (file, function) if one == rank else waits
            path = self.run_dir.stacks(1, one)
            path.parent.mkdir(exist_ok=True)
            with path.open("a") as text:
                text.write("Thread 0x1 (most recent call first):\n")
                text.write(f'  File "{place}", line 7 in {name}\n')

    def look_again(self) -> Hang:
        """The hang that shows a moment later, too."""
        self.now += POLL_EVERY_S
        hang = self.watch.poll()
        assert hang is not None
        return hang

    def pass_time(self, seconds: float, *beating: int) -> str | None:
        """Let time pass in looks of a second; these ranks beat, and do not advance."""
        end = self.now + seconds
        while self.now < end:
            self.now += POLL_EVERY_S
            for rank in beating:
                self.ranks[rank].idle_s += POLL_EVERY_S
                self.ranks[rank].beat()
            self.records.read()
            if (hang := self.watch.poll()) is not None:
                return hang.describe()
        return None


@pytest.fixture
def ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Ranks:
    return Ranks(tmp_path, monkeypatch)


def test_a_rank_without_heartbeats_is_found_when_its_time_is_up(ranks: Ranks) -> None:
    assert ranks.pass_time(59, 0) is None
    found = ranks.pass_time(5, 0)
    assert found is not None
    assert found.startswith("rank 1 (node2) hung in phase step")


def test_the_clocks_of_other_hosts_do_not_matter(ranks: Ranks) -> None:
    for t in (0.0, 4e9):
        line = {"kind": "heartbeat", "t": t, "rank": 1, "attempt": 1, "phase": "step", "v": 1}
        for _ in range(40):
            append_line(ranks.run_dir.events(1), line)
            assert ranks.pass_time(1, 0) is None


def test_a_file_that_cannot_be_read_makes_no_rank_silent(ranks: Ranks) -> None:
    assert ranks.pass_time(5, 0, 1) is None
    file = ranks.run_dir.events(1)
    file.rename(file.with_suffix(".away"))
    file.mkdir()  # opening it fails as a stale handle does
    assert ranks.pass_time(500, 0) is None


def test_time_in_which_the_supervisor_was_blocked_is_held_against_nobody(ranks: Ranks) -> None:
    assert ranks.pass_time(5, 0, 1) is None
    ranks.now += 5000.0
    assert ranks.pass_time(30, 0) is None


def test_silence_of_all_ranks_is_no_hang_while_the_folder_takes_no_files(
    ranks: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    away = ranks.run_dir.attempt_dir(1)
    away.rename(away.with_name("away"))
    assert ranks.pass_time(200) is None
    away.with_name("away").rename(away)
    found = ranks.pass_time(60)
    assert found is not None
    assert "no heartbeat from any of 2 ranks" in found


def test_a_phase_is_known_from_its_beginning_on(ranks: Ranks) -> None:
    """A rank may stop before its first heartbeat in it; one from before may be written late."""
    context = ranks.ranks[1]
    context.beat()
    late = list(read_events(ranks.run_dir.events(1)))[-1]
    context.enter(Phase.EXPORT)
    append_line(ranks.run_dir.events(1), late)
    found = ranks.pass_time(400, 0)
    assert found is not None
    assert found.startswith("rank 1 (node2) hung in phase export")


@pytest.fixture
def stopped_files(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """A file system that finishes no write until the event is set."""
    going = threading.Event()
    monkeypatch.setattr(
        "submitrain.launcher.supervisor.hang_watch.os.fsync", lambda _: going.wait(60)
    )
    monkeypatch.setattr("submitrain.launcher.supervisor.hang_watch.STOPPED_S", 0.05)
    monkeypatch.setattr("submitrain.launcher.supervisor.hang_watch.PROBE_S", 0.01)
    yield going
    going.set()


def test_nobody_hangs_while_the_file_system_stands_still(
    ranks: Ranks, stopped_files: threading.Event
) -> None:
    assert ranks.pass_time(400, 0) is None
    stopped_files.set()
    returned = ranks.watch.folder.answers(30)
    assert returned is not None
    assert ranks.pass_time(58, 0) is None, "what was blocked needs time to move on"
    found = ranks.pass_time(10, 0)
    assert found is not None
    assert found.startswith("rank 1 (node2) hung in phase step")


def test_a_file_system_that_never_answers_is_no_excuse_for_ever(
    ranks: Ranks, stopped_files: threading.Event
) -> None:
    found = ranks.pass_time(1000, 0)
    assert found is not None
    assert not stopped_files.is_set()
    assert "the file system of the run folder does not answer" in found


def test_a_rank_that_was_writing_its_record_may_move_on(ranks: Ranks) -> None:
    for _ in range(3):
        assert ranks.pass_time(100, 0) is not None
        hang = ranks.look_again()
        if ranks.watch.examine(
            hang, lambda: ranks.dump(1, "/srv/submitrain/events.py", "append_line")
        ):
            pytest.fail("it waited for the file system")
        assert ranks.pass_time(50, 0) is None
    assert ranks.pass_time(100, 0) is not None
    hang = ranks.look_again()
    found = ranks.watch.examine(hang, lambda: ranks.dump(1, "/home/me/data.py", "read"))
    assert found is not None
    assert found.where == "/home/me/data.py:7"
