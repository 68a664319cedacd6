"""On which nodes the next attempt runs, and when the job leaves: pure tables."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.config.job import SlurmConfig
from submitrain.launcher.supervisor.placement import (
    NodeRule,
    NodeState,
    Placement,
    bounded_exclusion,
    choose,
    describe_placement,
    place,
)

FOUR = ("n1", "n2", "n3", "n4")
POOL = frozenset({*FOUR, "n5", "n6", "n7"})


def rule(nodes: Any, granted: int, *, spares: int = 0, elastic: bool = True) -> NodeRule:
    slurm = SlurmConfig.model_validate({"nodes": nodes, "spare_nodes": spares})
    return NodeRule.of(slurm, granted, elastic=elastic)


def state(
    living: tuple[str, ...],
    current: tuple[str, ...] = (),
    lost: tuple[str, ...] = (),
    quarantined: tuple[str, ...] = (),
) -> NodeState:
    return NodeState(rule(4, 4), living, current, lost, quarantined, POOL)


RULES: dict[str, tuple[NodeRule, tuple[int, int, int]]] = {
    "a fixed number": (rule(4, 4), (4, 2, 4)),
    "half of an odd number is rounded up": (rule(3, 3), (3, 2, 3)),
    "one node": (rule(1, 1), (1, 1, 1)),
    "spares aside": (rule(3, 4, spares=1), (3, 2, 4)),
    "a range that got all": (rule("2-4", 4), (4, 2, 2)),
    "a range that got few": (rule("2-4", 2), (2, 2, 2)),
    "a range with a spare that got few": (rule("2-4", 3, spares=1), (2, 2, 3)),
    "less than was asked for": (rule(4, 1), (1, 1, 4)),
}


@pytest.mark.parametrize("name", RULES)
def test_a_job_wants_what_it_got_less_its_spares(name: str) -> None:
    found, (wanted, floor, job_min) = RULES[name]
    assert (found.wanted, found.floor, found.job_min) == (wanted, floor, job_min)


NEXT: dict[str, tuple[NodeState, NodeRule, Placement]] = {
    "all is well": (state(FOUR, FOUR), rule(4, 4), Placement(FOUR)),
    "a spare replaces a lost node": (
        state(FOUR, ("n1", "n2", "n3"), lost=("n2",)),
        rule(3, 4, spares=1),
        Placement(("n1", "n3", "n4"), ("n2",)),
    ),
    "a spare replaces a struck node": (
        state(FOUR, ("n1", "n2", "n3"), quarantined=("n2",)),
        rule(3, 4, spares=1),
        Placement(("n1", "n3", "n4"), ("n2",)),
    ),
    "a lost node that Slurm took away already": (
        state(("n1", "n3", "n4"), ("n1", "n2", "n3"), lost=("n2",)),
        rule(3, 4, spares=1),
        Placement(("n1", "n3", "n4"), ("n2",)),
    ),
    "no spare, elastic": (
        state(FOUR, FOUR, lost=("n4",)),
        rule(4, 4),
        Placement(("n1", "n2", "n3"), ("n4",)),
    ),
    "no spare, not elastic": (
        state(FOUR, FOUR, lost=("n4",)),
        rule(4, 4, elastic=False),
        Placement((), ("n4",)),
    ),
    "elastic, but fewer than half": (
        state(FOUR, FOUR, lost=("n2", "n3", "n4")),
        rule(4, 4),
        Placement((), ("n2", "n3", "n4")),
    ),
    "elastic, but fewer than the range allows": (
        state(("n1", "n2", "n3"), ("n1", "n2", "n3"), lost=("n2",)),
        rule("3-4", 3),
        Placement((), ("n2",)),
    ),
    "a struck node is dropped when elastic": (
        state(FOUR, FOUR, quarantined=("n2",)),
        rule(4, 4),
        Placement(("n1", "n3", "n4"), ("n2",)),
    ),
    "a struck node, not elastic": (
        state(FOUR, FOUR, quarantined=("n2",)),
        rule(4, 4, elastic=False),
        Placement((), ("n2",)),
    ),
}


@pytest.mark.parametrize("name", NEXT)
def test_what_follows_for_the_nodes(name: str) -> None:
    nodes, wanted, expected = NEXT[name]
    assert place(replace(nodes, rule=wanted)) == expected


def test_a_struck_node_is_used_again_when_the_job_could_not_run_without_it() -> None:
    nodes = replace(
        state(FOUR, FOUR, quarantined=("n2",)),
        rule=rule(4, 4, elastic=False),
        pool=frozenset(FOUR),
    )
    found = place(nodes)
    assert found == Placement(FOUR, (), kept=("n2",))
    assert "n2 would be avoided, but then too few nodes" in describe_placement(found, nodes)


def test_a_pool_that_nobody_knows_excludes_nothing() -> None:
    nodes = state(FOUR, FOUR, lost=("n4",))
    found = place(replace(nodes, rule=rule(4, 4, elastic=False), pool=None))
    assert found == Placement((), (), kept=("n4",))


def test_nodes_in_use_stay_and_keep_the_schedulers_order() -> None:
    nodes = state(FOUR, ("n2", "n4"))
    assert choose(replace(nodes, rule=rule(2, 4, spares=2))) == ("n2", "n4")
    assert choose(replace(nodes, rule=rule(3, 4, spares=1))) == ("n1", "n2", "n4")


WORDS: dict[str, tuple[NodeState, NodeRule, str]] = {
    "spare": (
        state(FOUR, ("n1", "n2", "n3"), lost=("n2",)),
        rule(3, 4, spares=1),
        "n4 takes the place of n2",
    ),
    "fewer": (
        state(FOUR, FOUR, lost=("n4",)),
        rule(4, 4),
        "it continues with 3 of 4 nodes, without n4",
    ),
    "queue": (
        state(FOUR, FOUR, lost=("n4",)),
        rule(4, 4, elastic=False),
        "3 of 4 nodes are left: back into the queue, without n4",
    ),
    "nothing": (state(FOUR, FOUR), rule(4, 4), ""),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_explanation_says_what_follows(name: str) -> None:
    nodes, wanted, text = WORDS[name]
    nodes = replace(nodes, rule=wanted)
    assert describe_placement(place(nodes), nodes) == text


NAMES = st.sampled_from([f"n{number}" for number in range(8)])


@given(candidates=st.lists(NAMES), pool=st.frozensets(NAMES), needed=st.integers(1, 8))
def test_an_exclusion_never_leaves_too_few_nodes(
    candidates: list[str], pool: frozenset[str], needed: int
) -> None:
    exclude, kept = bounded_exclusion(candidates, pool, needed)
    assert {*exclude, *kept} == set(candidates)
    assert not set(exclude) & set(kept)
    assert len(pool - set(exclude)) >= min(needed, len(pool))


@given(
    living=st.lists(NAMES, unique=True, min_size=1),
    lost=st.lists(NAMES, unique=True),
    struck=st.lists(NAMES, unique=True),
    wanted=st.integers(1, 8),
    elastic=st.booleans(),
)
def test_no_attempt_runs_on_a_lost_node_or_on_too_few(
    living: list[str], lost: list[str], struck: list[str], wanted: int, elastic: bool
) -> None:
    demand = NodeRule(wanted, -(-wanted // 2), wanted, elastic)
    nodes = NodeState(demand, tuple(living), (), tuple(lost), tuple(struck), POOL)
    found = place(nodes)
    assert not set(found.nodes) & set(lost)
    assert set(found.nodes) <= set(living)
    assert not found.nodes or demand.enough(len(found.nodes))
    assert len(found.nodes) <= wanted
