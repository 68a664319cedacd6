"""How a lost node shows: srun's words, silence, heartbeats that cease; and what sinfo says."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path

import pytest

from submitrain.launcher.supervisor import node_failures
from submitrain.launcher.supervisor.evidence import RankExit, RankFailure
from submitrain.launcher.supervisor.node_failures import (
    NodeWatch,
    lost_in_words,
    refused_in_words,
    silent_nodes,
)
from submitrain.launcher.supervisor.rank_events import Heartbeat, RankRecords
from submitrain.run_folder import RunDir
from submitrain.slurm.cluster import usable_nodes

NODES = ("node1", "node2", "node3")
LOST = (
    "srun: error: Node failure on node3\n"
    "srun: error: node2: task 1: Killed\n"
    "srun: error: node1: task 0: Killed\n"
    "srun: Force Terminated StepId=2.0\n"
)
REFUSED = (
    "srun: error: Task launch for StepId=2.2 failed on node node3: Communication connection "
    "failure\nsrun: error: Application launch failed: Communication connection failure\n"
    "srun: Job step aborted\n"
)


def test_sruns_words_name_the_node() -> None:
    assert lost_in_words(LOST) == {"node3": "srun: error: Node failure on node3"}
    assert lost_in_words("srun: error: Node failure on node[2-3].") == dict.fromkeys(
        ("node2", "node3"), "srun: error: Node failure on node[2-3]."
    )
    assert refused_in_words(REFUSED) == {"node3": "Communication connection failure"}
    assert lost_in_words(REFUSED) == refused_in_words(LOST) == {}


def test_a_node_is_silent_when_nobody_heard_of_its_ranks() -> None:
    exits = (RankExit(1, -9, "node2", ours=True),)
    failures = (RankFailure(0, "RuntimeError", "", "", 3, "step", True, 1.0, "node1"),)
    assert silent_nodes(NODES, exits=exits, failures=failures) == ("node3",)
    assert silent_nodes(NODES, exits=exits, failures=(), told={"node3"}) == ("node1",)


def test_only_nodes_that_take_jobs_count() -> None:
    text = (
        "n1 idle\nn2 allocated\nn3 mixed\nn4 down*\nn5 drained\nn6 idle*\nn7 completing\nn8 inval"
    )
    assert usable_nodes(text) == {"n1", "n2", "n3", "n7"}


class Inquiry:
    """Stands for the scheduler: says that some nodes are gone, and keeps what it was asked."""

    def __init__(self, gone: Collection[str]) -> None:
        self.gone = gone
        self.asked: list[tuple[str, ...]] = []

    def lost_nodes(self, suspects: Collection[str]) -> Mapping[str, str]:
        self.asked.append(tuple(suspects))
        return {node: "no answer" for node in suspects if node in self.gone}


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(node_failures, "time", clock)
    return clock


def watch_of(tmp_path: Path, inquiry: Inquiry) -> NodeWatch:
    records = RankRecords(RunDir(tmp_path), attempt=1, world_size=3)
    records.started = {0: "node1", 1: "node2", 2: "node3"}
    return NodeWatch(inquiry, NODES, records, heartbeat_s=5.0, words=tmp_path / "srun.err")


def live(watch: NodeWatch, clock: Clock, ranks: Collection[int], seconds: float) -> list[bool]:
    """Let some ranks beat every five seconds for a while."""
    seen = []
    for _ in range(int(seconds)):
        clock.now += 1.0
        if int(clock.now) % 5 == 0:
            for rank in ranks:
                watch.records.heartbeats[rank] = Heartbeat(clock.now, 3, "step", 0.0)
        seen.append(watch.poll())
    return seen


def test_a_node_that_ceases_to_beat_is_asked_for_and_found_gone(
    tmp_path: Path, clock: Clock
) -> None:
    inquiry = Inquiry({"node3"})
    watch = watch_of(tmp_path, inquiry)
    assert not any(live(watch, clock, (0, 1, 2), 60))
    assert inquiry.asked == [], "nobody is asked while all beat"
    assert any(live(watch, clock, (0, 1), 40))
    assert watch.lost == {"node3": "no answer"}


def test_a_silent_node_that_answers_is_not_gone(tmp_path: Path, clock: Clock) -> None:
    inquiry = Inquiry(())
    watch = watch_of(tmp_path, inquiry)
    live(watch, clock, (0, 1, 2), 20)
    assert not any(live(watch, clock, (0, 1), 60))
    assert set(inquiry.asked) == {("node3",)}
    assert len(inquiry.asked) <= 3, "asked now and then, not at every look"


def test_when_all_ranks_are_silent_no_node_is_suspected(tmp_path: Path, clock: Clock) -> None:
    """A shared file system that hangs silences everybody."""
    inquiry = Inquiry(NODES)
    watch = watch_of(tmp_path, inquiry)
    live(watch, clock, (0, 1, 2), 20)
    assert not any(live(watch, clock, (), 60))
    assert inquiry.asked == []


def test_a_launch_that_does_not_get_on_asks_for_the_jobs_nodes(
    tmp_path: Path, clock: Clock
) -> None:
    inquiry = Inquiry(())
    watch = watch_of(tmp_path, inquiry)
    del watch.records.started[2]
    assert not any(live(watch, clock, (0, 1), 20))
    assert inquiry.asked


def test_after_an_attempt_only_nodes_without_a_word_are_asked(tmp_path: Path) -> None:
    inquiry = Inquiry({"node3"})
    watch = watch_of(tmp_path, inquiry)
    exits = (RankExit(0, 1, "node1"), RankExit(1, -9, "node2", ours=True))
    lost, accused = watch.conclude(exits, ended_well=False)
    assert inquiry.asked == [("node3",)]
    assert list(lost) == ["node3"]
    assert accused == {}


def test_a_living_node_that_refused_ranks_is_accused(tmp_path: Path) -> None:
    (tmp_path / "srun.err").write_text(REFUSED)
    watch = watch_of(tmp_path, Inquiry(()))
    lost, accused = watch.conclude((), ended_well=False)
    assert lost == {}
    assert accused == {"node3": "Communication connection failure"}


def test_an_attempt_that_ended_well_asks_nobody(tmp_path: Path) -> None:
    inquiry = Inquiry(NODES)
    assert watch_of(tmp_path, inquiry).conclude((), ended_well=True) == ({}, {})
    assert inquiry.asked == []
