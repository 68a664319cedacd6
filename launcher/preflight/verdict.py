"""The verdict of a preflight: every node's findings, and who is unfit. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from launcher.assess.finding import Finding, Level, fail, ok, unknown, worst
from launcher.preflight.ask import Asked
from launcher.preflight.facts import NodeFacts, Unknown
from launcher.preflight.judge import INTRINSIC, Expected, judge_node
from launcher.preflight.peers import software
from monitor.preflight import in_words

VERSION = 1
FIRST_HAND = frozenset({"ranks.meet"})
"""Checks in which one node's failure leaves the others unknown: they waited for it."""


@dataclass(frozen=True)
class Verdict:
    """What one preflight found."""

    mode: str
    findings: Mapping[str, tuple[Finding, ...]]
    """By node."""
    silent: Mapping[str, str] = field(default_factory=dict)
    """Nodes that do not run tasks, and how that shows: lost to this job."""
    began_at: float = 0.0
    took_s: float = 0.0

    @property
    def unfit(self) -> dict[str, str]:
        """Nodes that training shall do without, and why; silent ones are among them."""
        return unfit_nodes(self.findings)

    @property
    def level(self) -> Level:
        """The gravest of all findings."""
        return worst(one for found in self.findings.values() for one in found)

    def level_of(self, node: str) -> Level:
        """The gravest finding about a node."""
        return worst(self.findings[node])

    def in_words(self) -> str:
        """One sentence."""
        return in_words(self.as_json())

    def in_short(self) -> dict[str, Any]:
        """For the line at an attempt's start, small at any number of nodes."""
        counts = Counter(self.level_of(node) for node in self.findings)
        return {
            "mode": self.mode,
            "took_s": round(self.took_s, 3),
            "nodes": {str(level): counts[level] for level in Level if counts[level]},
            "unfit": self.unfit,
        }

    def as_json(self) -> dict[str, Any]:
        """The record: ``attempts/NNN/preflight.json``."""
        return {
            "v": VERSION,
            "began_at": round(self.began_at, 3),
            **self.in_short(),
            "level": str(self.level),
            "findings": {
                node: [one.as_json() for one in found] for node, found in self.findings.items()
            },
        }


def unfit_nodes(findings: Mapping[str, tuple[Finding, ...]]) -> dict[str, str]:
    """Nodes with a failure that others do not share, or that is the node's own in any case.

    What fails on every node is the site's or the user's: no other node would be better.
    """
    looked: Counter[str] = Counter()
    failed: Counter[str] = Counter()
    for found in findings.values():
        looked.update(
            {one.id for one in found if one.level is not Level.UNKNOWN or one.id in FIRST_HAND}
        )
        failed.update({one.id for one in found if one.level is Level.FAIL})
    unfit: dict[str, str] = {}
    for node, found in findings.items():
        for one in found:
            alone = one.id in INTRINSIC or failed[one.id] < looked[one.id]
            if one.level is Level.FAIL and alone:
                unfit.setdefault(node, f"{one.id}: {one.evidence}")
    return unfit


def judge(asked: Asked, expected: Expected) -> dict[str, tuple[Finding, ...]]:
    """Findings of the node tier."""
    versions = software(asked.facts, expected.recorded)
    found: dict[str, tuple[Finding, ...]] = {
        node: (_python(facts), *judge_node(facts, expected), versions[node])
        for node, facts in asked.facts.items()
    }
    for node, why in asked.silent.items():
        remedy = "the run goes on without it; look at slurmd and the network there"
        found[node] = (fail("node.answers", f"it runs no tasks: {why}", remedy),)
    for node, why in asked.broken.items():
        remedy = "environment and run folder have to be there on every node, under the same path"
        found[node] = (fail("node.python", f"our Python does not run there: {why}", remedy),)
    for node, why in asked.unasked.items():
        found[node] = (unknown("node.answers", f"it could not be asked: {why}"),)
    return dict(sorted(found.items()))


def _python(facts: NodeFacts) -> Finding:
    version = "" if isinstance(facts.software, Unknown) else f" {facts.software.python}"
    return ok("node.python", f"Python{version} runs our code")
