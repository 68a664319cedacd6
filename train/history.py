"""What a run's folder says of its earlier attempts: failures, and what saves cost. No torch."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from train.cadence import FailureRate, SaveCost
from train.events import Kind, parse_event, read_events
from train.rundir import RunDir

TAIL_BYTES = 16 * 1024 * 1024
"""Of rank 0's events; half an hour of fast steps."""


@dataclass(frozen=True)
class History:
    """Failures of a run so far, in the seconds that its attempts have lasted."""

    failures: int = 0
    observed_s: float = 0.0

    def rate(self, *, node_mttf_s: float, nodes: int, more_s: float) -> FailureRate:
        """Together with a belief about nodes, after ``more_s`` further quiet seconds."""
        return FailureRate(node_mttf_s, nodes, self.failures, self.observed_s + more_s)


def read_history(run_dir: RunDir, attempt: int) -> History:
    """Failures and time of the attempts before ``attempt``, and its own time until now."""
    began: dict[int, float] = {}
    ended: dict[int, dict[str, Any]] = {}
    for event in read_events(run_dir.attempts):
        number = event.get("attempt")
        if not isinstance(number, int) or number > attempt:
            continue
        if event["kind"] == Kind.ATTEMPT_START:
            began[number] = float(event.get("t", 0.0))
        elif event["kind"] == Kind.ATTEMPT_END and number in began:
            ended[number] = event
    observed_s = sum(
        max(0.0, float(event.get("t", 0.0)) - began[number]) for number, event in ended.items()
    )
    if attempt in began and attempt not in ended:
        observed_s += max(0.0, time.time() - began[attempt])
    return History(sum(lost_work(event) for event in ended.values()), observed_s)


def lost_work(end: Mapping[str, Any]) -> bool:
    """Whether an attempt's end means that steps were lost.

    One that made no step has none to lose (most often its configuration was wrong), and one whose
    ranks all finished, or saved and stopped as asked, has lost none.
    """
    if (end.get("last_step") or 0) <= (end.get("first_step") or 0):
        return False
    facts = end.get("evidence") or {}
    orderly = (facts.get("finished") or 0) + (facts.get("stopped") or 0)
    return bool(orderly < (facts.get("world_size") or 1))


def read_save_cost(path: Path, *, limit_bytes: int = TAIL_BYTES) -> SaveCost | None:
    """What saves cost by the end of rank 0's event file: as last announced, else the last save."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - limit_bytes))
            lines = [line for line in file.read().splitlines(keepends=True) if _about_saves(line)]
    except OSError:
        return None
    newest: dict[str, SaveCost] = {}
    for line in lines:
        event = parse_event(line)
        cost = _cost(event) if event else None
        if event and cost:
            newest[event["kind"]] = cost
    return newest.get(Kind.CHECKPOINT_INTERVAL) or newest.get(Kind.CHECKPOINT)


def _about_saves(line: bytes) -> bool:
    """A line cheap to recognise: very few of them have to be parsed."""
    return b'"kind":"checkpoint' in line


def _cost(event: Mapping[str, Any]) -> SaveCost | None:
    values = [event.get("blocked_s"), event.get("save_s"), event.get("slowed_s", 0.0)]
    if not all(isinstance(value, int | float) for value in values):
        return None
    blocked_s, save_s, slowed_s = (float(value) for value in values if value is not None)
    return SaveCost(blocked_s, save_s, slowed_s)
