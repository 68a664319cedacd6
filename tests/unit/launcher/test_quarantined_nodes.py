"""Which ends of attempts are held against which node, for how long, and from when on it is out."""

from __future__ import annotations

from typing import Any

import pytest

from submitrain.attempts import Attempt, Cause, attempts_of
from submitrain.launcher.supervisor.evidence import AttemptEvidence, RankExit, RankFailure
from submitrain.launcher.supervisor.placement import (
    Strike,
    blame,
    quarantined_nodes,
    strikes_in,
)

DAY = 86400.0


def evidence(**changes: Any) -> AttemptEvidence:
    return AttemptEvidence(attempt=1, world_size=4, **changes)


def failure(rank: int, host: str, *, victim: bool) -> RankFailure:
    return RankFailure(rank, "RuntimeError", "", "", 3, "step", victim, 1.0, host)


BLAMED: dict[str, tuple[Cause, AttemptEvidence, tuple[str, ...]]] = {
    "a rank killed by a signal": (
        Cause.RANK_DIED,
        evidence(exits=(RankExit(1, -9, "node2"), RankExit(0, -9, "node1", ours=True))),
        ("node2",),
    ),
    "victims before the dead rank": (
        Cause.RANK_DIED,
        evidence(
            failures=(failure(0, "node1", victim=True),),
            exits=(RankExit(0, 1, "node1"), RankExit(3, -11, "node4")),
        ),
        ("node4",),
    ),
    "a rank that reports its broken device": (
        Cause.RANK_DIED,
        evidence(failures=(failure(2, "node3", victim=False),), exits=(RankExit(2, 1, "node3"),)),
        ("node3",),
    ),
    "victims only": (
        Cause.RANK_DIED,
        evidence(failures=(failure(0, "node1", victim=True),), exits=(RankExit(0, 1, "node1"),)),
        (),
    ),
    "two lost nodes": (
        Cause.NODE_LOST,
        evidence(lost_nodes={"node2": "gone", "node3": "gone"}),
        ("node2", "node3"),
    ),
    "a node that starts nothing": (
        Cause.LAUNCH_FAILED,
        evidence(accused_nodes={"node3": "Communication connection failure"}),
        ("node3",),
    ),
    "the program's own error": (
        Cause.PROGRAM_ERROR,
        evidence(failures=(failure(2, "node3", victim=False),), exits=(RankExit(2, 1, "node3"),)),
        (),
    ),
    "memory": (
        Cause.OUT_OF_MEMORY,
        evidence(exits=(RankExit(1, -9, "node2"),)),
        (),
    ),
    "a time limit": (Cause.TIME_LIMIT, evidence(exits=(RankExit(1, -9, "node2"),)), ()),
}


@pytest.mark.parametrize("name", BLAMED)
def test_blame_falls_on_the_node_of_the_first_fault_or_on_none(name: str) -> None:
    cause, found, nodes = BLAMED[name]
    blamed = blame(found, cause)
    assert tuple(blamed) == nodes
    assert all(blamed.values())


def end(attempt: int, t: float, **fields: Any) -> dict[str, Any]:
    return {"kind": "attempt_end", "attempt": attempt, "t": t, **fields}


def recorded(*ends: dict[str, Any]) -> list[Attempt]:
    starts = [{"kind": "attempt_start", "attempt": one["attempt"], "t": 1.0} for one in ends]
    return attempts_of([*starts, *ends])


def test_strikes_are_read_from_the_ends_of_attempts() -> None:
    events = [
        end(1, 2.0, cause="rank_died", strikes=[{"node": "node2", "why": "rank 1 died"}]),
        end(2, 3.0, cause="hung", hang={"host": "node3"}),
        end(3, 4.0, cause="hung", evidence={"hang": {"host": "node4"}}),
        end(4, 5.0, cause="finished"),
    ]
    assert strikes_in(recorded(*events)) == [
        Strike("node2", 2.0, 1, "rank 1 died"),
        Strike("node3", 3.0, 2, "a rank hung"),
        Strike("node4", 4.0, 3, "a rank hung"),
    ]


def test_a_corrected_end_does_not_count_twice() -> None:
    strike = [{"node": "node2", "why": "x"}]
    events = [end(1, 2.0, strikes=strike), end(1, 3.0, strikes=strike)]
    assert len(strikes_in(recorded(*events))) == 1


@pytest.mark.parametrize(
    "broken",
    [
        {"strikes": None},
        {"strikes": ["node2", {"why": "no node"}, {"node": ""}]},
        {"cause": "hung", "hang": "node2"},
        {"cause": "hung", "evidence": None},
        {"cause": "finished", "hang": {"host": "node2"}},
    ],
)
def test_what_is_no_strike_is_none(broken: dict[str, Any]) -> None:
    assert strikes_in(recorded(end(1, 2.0, **broken))) == []


def strike(node: str, t: float) -> Strike:
    return Strike(node, t, 1, "x")


OUT: dict[str, tuple[list[Strike], int | None, list[str]]] = {
    "one is not enough": ([strike("a", 100)], 2, []),
    "two are": ([strike("a", 100), strike("a", 200)], 2, ["a"]),
    "old ones do not count": ([strike("a", -DAY), strike("a", 200)], 2, []),
    "never": ([strike("a", 100)] * 9, None, []),
    "the worst first": (
        [strike("a", 100), strike("b", 90), strike("b", 95), strike("a", 110), strike("b", 120)],
        2,
        ["b", "a"],
    ),
    "of equals the latest first": (
        [strike("a", 100), strike("b", 120)],
        1,
        ["b", "a"],
    ),
}


@pytest.mark.parametrize("name", OUT)
def test_a_node_is_out_after_enough_strikes_until_they_expire(name: str) -> None:
    strikes, limit, nodes = OUT[name]
    assert list(quarantined_nodes(strikes, now=300.0, limit=limit, expiry_s=DAY)) == nodes
