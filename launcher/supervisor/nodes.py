"""Chooses the nodes of every attempt of this job, and keeps the bad ones out.

Facts come from the attempt's evidence, attempts.jsonl and the allocation; what they mean is decided
by ``launcher.supervisor.placement`` and ``launcher.supervisor.placement``, which are pure.

Whether Slurm gave a requeued job a node back that it had left, and what to do about it. Pure.

``requeue.exclude_nodes`` may come too late or be refused: without accounting, Slurm 22.05 takes no
update of a job that shrank before it was requeued, until the job's own processes are gone.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from submitrain.attempts import Action, Attempt, Cause, Decision, read_attempts
from submitrain.config import RunConfig
from submitrain.launcher.checks.preflight import PreflightResult
from submitrain.launcher.supervisor.allocation import Allocation
from submitrain.launcher.supervisor.decide import within_budget
from submitrain.launcher.supervisor.evidence import AttemptEvidence, NodeSign
from submitrain.launcher.supervisor.placement import (
    NodeRule,
    Outlook,
    Standing,
    Strike,
    blame,
    choose,
    in_words,
    outlook,
    strikes_in,
    struck_out,
)
from submitrain.run_folder import RunDir
from submitrain.slurm.parse import expand_nodes


@dataclass(frozen=True)
class Left:
    """The nodes that a job wanted to be rid of when it last went back into the queue."""

    nodes: tuple[str, ...] = ()
    restarts: int = 0
    """How often Slurm had restarted the job then."""

    def among(self, granted: Collection[str]) -> tuple[str, ...]:
        """Those that the job has again."""
        return tuple(node for node in self.nodes if node in granted)

    def helps_again(self, exclude: Collection[str], granted: Collection[str], now: int) -> bool:
        """Whether to go back once more with ``exclude``; ``now`` is Slurm's count of restarts.

        Only at the first restart after the job left, so never twice for one failure, and only if
        the node can be excluded this time.
        """
        return now == self.restarts + 1 and bool(set(exclude) & set(self.among(granted)))


def last_left(attempts: Iterable[Attempt], job_id: str) -> Left:
    """What the last attempt of this job left behind."""
    last = next((one for one in reversed(list(attempts)) if one.job_id == job_id), Attempt(0))
    leaves = last.action is Action.REQUEUE
    nodes = tuple(map(str, last.end.get("nodes_excluded") or ())) if leaves else ()
    return Left(nodes, last.restarts if last.cause else 0)


_FOLLOWED = frozenset({Action.RESTART, Action.REQUEUE, Action.RESUBMIT})
MOST_LEAVES = 2
"""How often in a row a run goes back into the queue for what a preflight found.

After that it trains on the nodes that it has: a check may be wrong, and must not keep it for ever.
"""
_MEMORY = frozenset({Cause.OUT_OF_MEMORY, Cause.HOST_OUT_OF_MEMORY})


@dataclass
class NodeKeeper:
    """The nodes of one job, over its attempts."""

    run_dir: RunDir
    config: RunConfig
    allocation: Allocation
    lost: dict[str, str] = field(default_factory=dict)
    exclude: tuple[str, ...] = ()
    """Nodes that the next job of this run shall not get."""

    def __post_init__(self) -> None:
        resilience, granted = self.config.resilience, self.allocation.granted
        self.rule = NodeRule.of(self.config.slurm, granted, elastic=resilience.elastic)
        self.users_exclude = tuple(expand_nodes(self.config.slurm.exclude or ""))
        self._blamed: tuple[NodeSign, ...] = ()
        self._strikes: dict[str, list[Strike]] = {}
        self._idle: tuple[str, ...] = ()
        self._living: tuple[str, ...] = ()
        self._unfit: dict[str, str] = {}
        self._unfit_attempt = 0
        self._left = last_left(read_attempts(self.run_dir), self.allocation.job_id)
        self._returned = self._left.among(self.allocation.spawner.nodes)
        """Nodes that this job left, and that Slurm gave it all the same."""

    def leaves_again(self) -> bool:
        """Whether the job shall go back at once: Slurm gave it a node that it had left.

        At most once for every time that it left; then the node is used again. Not where spares
        take its place.
        """
        standing = self._standing(()) if self._returned else None
        if standing is None or len(choose(standing, self.rule)) >= self.rule.wanted:
            return False
        self.exclude = self._outlook(standing).exclude
        restarts = self.allocation.restarts
        if self._left.helps_again(self.exclude, standing.living, restarts):
            return True
        self._returned = self.exclude = ()
        return False

    @property
    def living(self) -> tuple[str, ...]:
        """Nodes of the job as it was last heard of, idle ones too; empty without a scheduler."""
        return self._living

    def place(self) -> None:
        """Choose the nodes of the next attempt from those that the job has now."""
        standing = self._standing(())
        if standing is None:
            return
        nodes = choose(standing, self.rule)
        if not self.rule.enough(len(nodes)):
            # Here the ranks shall run; whether to leave is decided after a failure, not before.
            nodes = choose(standing, self.rule, forgive=standing.struck)
        if nodes:
            self._use(nodes, standing)

    def _use(self, nodes: tuple[str, ...], standing: Standing) -> None:
        self.allocation.use(nodes)
        self._idle = tuple(node for node in standing.living if node not in nodes)

    def weigh(
        self, result: PreflightResult, attempt: int, history: Sequence[Attempt]
    ) -> Decision | None:
        """Do without the nodes that a preflight found unfit; a decision where that means to leave.

        A spare takes their place, or fewer nodes go on; a node that cannot be done without stays.
        """
        self.lost |= result.silent
        self._unfit, self._unfit_attempt = dict(result.unfit), attempt
        standing = self._standing(())
        if standing is None or not self._unfit:
            return None
        found = self._outlook(standing)
        text = "; ".join(f"{node} is unfit ({why})" for node, why in self._unfit.items())
        words = in_words(found, standing, self.rule)
        decision = Decision(Cause.PREFLIGHT, Action.REQUEUE, "; ".join(filter(None, [text, words])))
        decision = within_budget(decision, history, self.config.resilience)
        stay = found.nodes
        comes_back = self.config.slurm.requeue or self.config.resilience.resubmit
        hopeless = not comes_back or decision.action is Action.STOP
        if not stay and (hopeless or _left_in_a_row(history)):
            stay = choose(standing, self.rule, forgive=standing.struck)
        if self.rule.enough(len(stay)):
            self._use(stay, standing)
            return None
        self.exclude = found.exclude
        return decision

    def at_start(self) -> dict[str, Any]:
        """For the line at the start of an attempt: nodes of the job that it does not use."""
        return {"nodes_idle": list(self._idle)} if self._idle else {}

    def follow(
        self,
        evidence: AttemptEvidence,
        decision: Decision,
        history: Sequence[Attempt],
    ) -> Decision:
        """What the attempt's end means for the nodes: a restart may have to become a requeue."""
        self.lost |= {sign.node: sign.sign for sign in evidence.lost_nodes}
        self._blamed = blame(evidence, decision) if self.allocation.has_queue else ()
        self.exclude = ()
        if decision.action not in _FOLLOWED and decision.cause not in _MEMORY:
            return decision
        standing = self._standing(self._blamed)
        if standing is None:
            return decision
        if self._lacks_memory(decision, standing):
            return self._leave(self._for_memory(decision, standing), standing, history)
        if decision.action in (Action.REQUEUE, Action.RESUBMIT):
            self.exclude = self._outlook(standing).exclude
            return decision
        if decision.action is not Action.RESTART:
            return decision
        found = self._outlook(standing)
        decision = _with_words(decision, self._told(standing), in_words(found, standing, self.rule))
        return decision if found.nodes else self._leave(decision, standing, history)

    def at_end(self, attempt: int) -> dict[str, Any]:
        """For the line at the end of an attempt: what speaks against nodes, and what follows."""
        fields: dict[str, Any] = {}
        strikes: list[dict[str, Any]] = [
            {"node": one.node, "why": one.sign} for one in self._blamed
        ]
        if attempt == self._unfit_attempt:
            strikes += [{"node": n, "why": w, "alone": True} for n, w in self._unfit.items()]
        if strikes:
            fields["strikes"] = strikes
        if self.lost:
            fields["nodes_lost"] = self.lost
        if self.exclude:
            fields["nodes_excluded"] = list(self.exclude)
        return fields

    def _standing(self, blamed: Sequence[NodeSign]) -> Standing | None:
        """What is known of the nodes now; None where there is nothing to choose."""
        # Without an answer the last one holds: a lost node must not be used for want of news.
        living = self._living = self.allocation.living_nodes() or self._living
        if not living:
            return None
        self._strikes = self._struck(blamed)
        bad = tuple(dict.fromkeys([*self._strikes, *self._unfit, *self._returned]))
        return Standing(living, self.allocation.spawner.nodes, tuple(self.lost), bad)

    def _struck(self, blamed: Sequence[NodeSign]) -> dict[str, list[Strike]]:
        """Nodes that are out, with the strikes that are not in the record yet."""
        now, resilience = time.time(), self.config.resilience
        strikes = strikes_in(read_attempts(self.run_dir))
        strikes += [Strike(one.node, now, 0, one.sign) for one in blamed]
        return struck_out(
            strikes, now=now, limit=resilience.max_strikes, expiry_s=resilience.strike_expiry
        )

    def _outlook(self, standing: Standing) -> Outlook:
        bad = standing.lost or standing.struck
        return outlook(standing, self.rule, self.allocation.pool() if bad else None)

    def _leave(
        self, decision: Decision, standing: Standing, history: Sequence[Attempt]
    ) -> Decision:
        """Back into the queue, without the bad nodes, as often as the budget allows."""
        self.exclude = self._outlook(standing).exclude
        wanted = Decision(decision.cause, Action.REQUEUE, decision.explanation)
        return within_budget(wanted, history, self.config.resilience)

    def _lacks_memory(self, decision: Decision, standing: Standing) -> bool:
        """Whether ranks ran out of memory on fewer nodes than the job began with."""
        return decision.cause in _MEMORY and 0 < len(standing.current) < self.rule.wanted

    def _for_memory(self, decision: Decision, standing: Standing) -> Decision:
        have, wanted = len(standing.current), self.rule.wanted
        return _with_words(decision, f"with {have} of {wanted} nodes: back into the queue for all")

    def _told(self, standing: Standing) -> str:
        """Why nodes in use are avoided from now on."""
        return "; ".join(
            f"{node} has {len(found)} strike{'s' if len(found) > 1 else ''} ({found[-1].why})"
            for node, found in self._strikes.items()
            if node in standing.current and node not in standing.lost
        )


def _left_in_a_row(history: Sequence[Attempt]) -> bool:
    """Whether the last attempts were given up for unfit nodes as often as is worth it."""
    last = history[-MOST_LEAVES:]
    return len(last) == MOST_LEAVES and all(one.cause is Cause.PREFLIGHT for one in last)


def _with_words(decision: Decision, *words: str) -> Decision:
    text = "; ".join([decision.explanation, *(one for one in words if one)])
    return Decision(decision.cause, decision.action, text)
