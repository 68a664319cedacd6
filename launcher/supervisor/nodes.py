"""Gathers what is known of the job's nodes, and uses those that were chosen.

What the facts mean is decided by ``launcher.supervisor.placement`` and ``decide``, which are pure.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from submitrain.attempts import Action, Attempt, Decision, read_attempts
from submitrain.config import RunConfig
from submitrain.launcher.checks.preflight import PreflightResult
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.launcher.supervisor.decide import after_preflight, decide, needs_nodes
from submitrain.launcher.supervisor.evidence import AttemptEvidence
from submitrain.launcher.supervisor.placement import (
    ExcludedNodes,
    NodeRule,
    NodeState,
    Strike,
    choose,
    place,
    quarantined_nodes,
    strikes_in,
)
from submitrain.run_folder import RunDir
from submitrain.slurm.parse import expand_nodes
from submitrain.text import counted


class NodeSelector:
    """The nodes of one job, over its attempts."""

    def __init__(self, run_dir: RunDir, config: RunConfig, allocation: Allocation) -> None:
        self.run_dir, self.config, self.allocation = run_dir, config, allocation
        elastic = config.resilience.elastic
        self.rule = NodeRule.of(config.slurm, allocation.granted, elastic=elastic)
        self.users_exclude = tuple(expand_nodes(config.slurm.exclude or ""))
        self.lost: dict[str, str] = {}
        """Nodes that are gone, and how that showed."""
        self.unfit: dict[str, str] = {}
        """What the preflight before ``unfit_attempt`` found, and why."""
        self.unfit_attempt = 0
        self.idle: tuple[str, ...] = ()
        """Nodes of the job that the attempt does not use."""
        self.living: tuple[str, ...] = ()
        """Nodes of the job as it was last heard of; empty without a scheduler."""
        self._before = ExcludedNodes.last(read_attempts(run_dir), allocation.job_id)
        self._returned = self._before.among(allocation.spawner.nodes)
        """Nodes that this job left, and that Slurm gave it all the same."""

    def exclusion(self, exclude: Sequence[str]) -> tuple[str, ...]:
        """All that a requeued job shall not get: those nodes, and the user's own exclusion."""
        return (*self.users_exclude, *exclude)

    def leave_again(self) -> tuple[str, ...]:
        """The nodes to exclude in going back at once: Slurm gave the job one that it had left.

        At most once for every time that it left; then the node is used again. Not where spares
        take its place.
        """
        state = self._state() if self._returned else None
        if state is None or len(choose(state)) >= self.rule.wanted:
            return ()
        exclude = place(self._with_pool(state)).exclude
        if self._before.helps_again(exclude, state.living, self.allocation.restarts):
            return exclude
        self._returned = ()
        return ()

    def place(self) -> None:
        """Choose the nodes of the next attempt from those that the job has now."""
        state = self._state()
        if state is None:
            return
        nodes = choose(state)
        if not self.rule.enough(len(nodes)):
            # Here the ranks shall run; whether to leave is decided after a failure, not before.
            nodes = choose(state, forgive=state.quarantined)
        if nodes:
            self._use(nodes, state)

    def weigh(
        self, result: PreflightResult, attempt: int, history: Sequence[Attempt]
    ) -> Decision | None:
        """Do without the nodes that a preflight found unfit; a decision where that means to leave.

        A spare takes their place, or fewer nodes go on; a node that cannot be done without stays.
        """
        self.lost |= result.silent
        self.unfit, self.unfit_attempt = dict(result.unfit), attempt
        state = self._state()
        if state is None or not self.unfit:
            return None
        limits = self.config.resilience
        comes_back = self.config.slurm.requeue or limits.resubmit
        state = self._with_pool(state)
        found = after_preflight(self.unfit, state, history, limits, comes_back=comes_back)
        if found.action is not Action.RESTART:
            return found
        self._use(found.nodes, state)
        return None

    def after(self, evidence: AttemptEvidence, history: Sequence[Attempt]) -> NodeState | None:
        """The nodes after an attempt, for ``decide``; None where they do not matter."""
        self.lost |= evidence.lost_nodes
        wanted = decide(evidence, history, None, self.config.resilience)
        state = self._state(wanted.blamed) if needs_nodes(wanted) else None
        return None if state is None else self._with_pool(state)

    def end_fields(self, attempt: int, decision: Decision) -> dict[str, Any]:
        """For the line at the end of an attempt: what speaks against nodes, and what follows."""
        strikes: list[dict[str, Any]] = [
            {"node": node, "why": why} for node, why in decision.blamed.items()
        ]
        if attempt == self.unfit_attempt:
            strikes += [{"node": n, "why": w, "alone": True} for n, w in self.unfit.items()]
        fields = {
            "strikes": strikes,
            "nodes_lost": self.lost,
            "nodes_excluded": list(decision.exclude),
        }
        return {name: value for name, value in fields.items() if value}

    def _state(self, blamed: Mapping[str, str] | None = None) -> NodeState | None:
        """What is known now; None where there is nothing to choose.

        ``blamed`` are nodes whose newest strike is not in the record yet, and why.
        """
        # Without an answer the last one holds: a lost node must not be used for want of news.
        self.living = self.allocation.living_nodes() or self.living
        if not self.living:
            return None
        now, limits = time.time(), self.config.resilience
        strikes = strikes_in(read_attempts(self.run_dir))
        strikes += [Strike(node, now, 0, why) for node, why in (blamed or {}).items()]
        struck = quarantined_nodes(
            strikes, now=now, limit=limits.max_strikes, expiry_s=limits.strike_expiry
        )
        words = {
            node: f"has {counted(len(found), 'strike')} ({found[-1].why})"
            for node, found in struck.items()
        }
        bad = tuple(dict.fromkeys([*struck, *self.unfit, *self._returned]))
        current = self.allocation.spawner.nodes
        return NodeState(self.rule, self.living, current, tuple(self.lost), bad, strikes=words)

    def _with_pool(self, state: NodeState) -> NodeState:
        """The state with the nodes that could run the job: asked only where a node is bad."""
        bad = state.lost or state.quarantined
        return replace(state, pool=self.allocation.pool()) if bad else state

    def _use(self, nodes: tuple[str, ...], state: NodeState) -> None:
        self.allocation.use(nodes)
        self.idle = tuple(node for node in state.living if node not in nodes)
