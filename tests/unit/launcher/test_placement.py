"""On which nodes the next attempt runs, and when the job leaves: pure tables."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.config.job import SlurmConfig
from submitrain.launcher.supervisor.placement import (
    NodeRule,
    Outlook,
    Standing,
    bounded_exclusion,
    choose,
    in_words,
    outlook,
)

FOUR = ("n1", "n2", "n3", "n4")
POOL = frozenset({*FOUR, "n5", "n6", "n7"})


def rule(nodes: Any, granted: int, *, spares: int = 0, elastic: bool = True) -> NodeRule:
    slurm = SlurmConfig.model_validate({"nodes": nodes, "spare_nodes": spares})
    return NodeRule.of(slurm, granted, elastic=elastic)


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


NEXT: dict[str, tuple[Standing, NodeRule, Outlook]] = {
    "all is well": (Standing(FOUR, FOUR), rule(4, 4), Outlook(FOUR)),
    "a spare replaces a lost node": (
        Standing(FOUR, ("n1", "n2", "n3"), lost=("n2",)),
        rule(3, 4, spares=1),
        Outlook(("n1", "n3", "n4"), ("n2",)),
    ),
    "a spare replaces a struck node": (
        Standing(FOUR, ("n1", "n2", "n3"), struck=("n2",)),
        rule(3, 4, spares=1),
        Outlook(("n1", "n3", "n4"), ("n2",)),
    ),
    "a lost node that Slurm took away already": (
        Standing(("n1", "n3", "n4"), ("n1", "n2", "n3"), lost=("n2",)),
        rule(3, 4, spares=1),
        Outlook(("n1", "n3", "n4"), ("n2",)),
    ),
    "no spare, elastic": (
        Standing(FOUR, FOUR, lost=("n4",)),
        rule(4, 4),
        Outlook(("n1", "n2", "n3"), ("n4",)),
    ),
    "no spare, not elastic": (
        Standing(FOUR, FOUR, lost=("n4",)),
        rule(4, 4, elastic=False),
        Outlook((), ("n4",)),
    ),
    "elastic, but fewer than half": (
        Standing(FOUR, FOUR, lost=("n2", "n3", "n4")),
        rule(4, 4),
        Outlook((), ("n2", "n3", "n4")),
    ),
    "elastic, but fewer than the range allows": (
        Standing(("n1", "n2", "n3"), ("n1", "n2", "n3"), lost=("n2",)),
        rule("3-4", 3),
        Outlook((), ("n2",)),
    ),
    "a struck node is dropped when elastic": (
        Standing(FOUR, FOUR, struck=("n2",)),
        rule(4, 4),
        Outlook(("n1", "n3", "n4"), ("n2",)),
    ),
    "a struck node, not elastic": (
        Standing(FOUR, FOUR, struck=("n2",)),
        rule(4, 4, elastic=False),
        Outlook((), ("n2",)),
    ),
}


@pytest.mark.parametrize("name", NEXT)
def test_what_follows_for_the_nodes(name: str) -> None:
    standing, wanted, expected = NEXT[name]
    assert outlook(standing, wanted, POOL) == expected


def test_a_struck_node_is_used_again_when_the_job_could_not_run_without_it() -> None:
    standing = Standing(FOUR, FOUR, struck=("n2",))
    inelastic = rule(4, 4, elastic=False)
    found = outlook(standing, inelastic, frozenset(FOUR))
    assert found == Outlook(FOUR, (), kept=("n2",))
    assert "n2 would be avoided, but then too few nodes" in in_words(found, standing, inelastic)


def test_a_pool_that_nobody_knows_excludes_nothing() -> None:
    found = outlook(Standing(FOUR, FOUR, lost=("n4",)), rule(4, 4, elastic=False), None)
    assert found == Outlook((), (), kept=("n4",))


def test_nodes_in_use_stay_and_keep_the_schedulers_order() -> None:
    standing = Standing(FOUR, ("n2", "n4"))
    assert choose(standing, rule(2, 4, spares=2)) == ("n2", "n4")
    assert choose(standing, rule(3, 4, spares=1)) == ("n1", "n2", "n4")


WORDS: dict[str, tuple[Standing, NodeRule, str]] = {
    "spare": (
        Standing(FOUR, ("n1", "n2", "n3"), lost=("n2",)),
        rule(3, 4, spares=1),
        "n4 takes the place of n2",
    ),
    "fewer": (
        Standing(FOUR, FOUR, lost=("n4",)),
        rule(4, 4),
        "it goes on with 3 of 4 nodes, without n4",
    ),
    "queue": (
        Standing(FOUR, FOUR, lost=("n4",)),
        rule(4, 4, elastic=False),
        "3 of 4 nodes are left: back into the queue, without n4",
    ),
    "nothing": (Standing(FOUR, FOUR), rule(4, 4), ""),
}


@pytest.mark.parametrize("name", WORDS)
def test_the_explanation_says_what_follows(name: str) -> None:
    standing, wanted, text = WORDS[name]
    assert in_words(outlook(standing, wanted, POOL), standing, wanted) == text


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
    found = outlook(Standing(tuple(living), (), tuple(lost), tuple(struck)), demand, POOL)
    assert not set(found.nodes) & set(lost)
    assert set(found.nodes) <= set(living)
    assert not found.nodes or demand.enough(len(found.nodes))
    assert len(found.nodes) <= wanted
