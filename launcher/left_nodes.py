"""Whether Slurm gave a requeued job a node back that it had left, and what to do about it. Pure.

``requeue.exclude_nodes`` may come too late or be refused: without accounting, Slurm 22.05 takes no
update of a job that shrank before it was requeued, until the job's own processes are gone.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.outcome import Action
from train.events import Kind


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


def last_left(events: Iterable[Mapping[str, Any]], job_id: str) -> Left:
    """What the last recorded attempt of this job left behind, by attempts.jsonl."""
    restarts: dict[object, int] = {}
    found = Left()
    for event in events:
        if event.get("job_id") != job_id:
            continue
        attempt = event.get("attempt")
        if event.get("kind") == Kind.ATTEMPT_START:
            restarts[attempt] = int(event.get("restart_count") or 0)
            found = Left()
        elif event.get("kind") == Kind.ATTEMPT_END:
            leaves = event.get("action") == Action.REQUEUE
            nodes = tuple(map(str, event.get("nodes_excluded") or ())) if leaves else ()
            found = Left(nodes, restarts.get(attempt, 0))
    return found
