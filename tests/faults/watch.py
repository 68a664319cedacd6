"""What can be seen of a run while faults are injected: steps, attempts, faults that fired."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt, read_attempts
from submitrain.events import EventTail, Kind, read_events
from submitrain.launcher import Run
from submitrain.run_folder import RunDir
from submitrain.train.faults import Fired, read_fired

POLL_S = 0.05
PATIENCE_S = 300.0


class GaveUpError(AssertionError):
    """What was waited for did not come."""


@dataclass
class RunWatch:
    """Follows the events of one run's ranks."""

    run: Run
    world_size: int
    spoke: dict[int, set[int]] = field(default_factory=dict)
    """Attempt to the ranks that are past their start: they have read which faults are planned."""
    step: int = 0
    """Newest step of the newest attempt."""
    stepped: int = 0
    """Newest attempt that finished a step."""
    failed_saves: int = 0

    def __post_init__(self) -> None:
        paths = [self.run_dir.events(rank) for rank in range(self.world_size)]
        self._tails = {rank: EventTail(path, 0) for rank, path in enumerate(paths)}

    @property
    def run_dir(self) -> RunDir:
        """The run folder."""
        return self.run.run_dir

    def look(self) -> None:
        """Read what is new."""
        for rank, tail in self._tails.items():
            for event in tail.read():
                self._take(rank, event)

    def _take(self, rank: int, event: dict[str, Any]) -> None:
        if event["kind"] == Kind.STEP:
            self.step, self.stepped = event["step"], event["attempt"]
        if event["kind"] == Kind.CHECKPOINT_FAILED:
            self.failed_saves += 1
        if event["kind"] != Kind.START:
            self.spoke.setdefault(event["attempt"], set()).add(rank)

    def until(
        self, condition: Callable[[], Any], what: str, *, patience_s: float = PATIENCE_S
    ) -> None:
        """Look again and again until something holds.

        Raises:
            GaveUpError: the run ended, or patience did, before that.
        """
        deadline = time.monotonic() + patience_s
        while not condition():
            self.look()
            if condition():
                return
            if (end := self._end()) is not None:
                raise GaveUpError(f"the run ended before {what}: {end}")
            if time.monotonic() > deadline:
                raise GaveUpError(f"waited {patience_s:g} s in vain for {what}")
            time.sleep(POLL_S)

    def _end(self) -> str | None:
        """How the run ended, if nothing more happens."""
        try:
            summary: dict[str, Any] = json.loads(self.run_dir.summary.read_text())
        except FileNotFoundError:
            return None
        text = f"{summary['state']}, {summary['explanation']}"
        return text if summary["state"] != "requeued" else None

    def fired(self, name: str) -> Fired | None:
        """The record of a planned fault that struck."""
        path = self.run_dir.fired / name / "fired.json"
        if not path.exists():
            return None
        return next((one for one in read_fired(self.run_dir) if one.id == name), None)

    def attempt(self, number: int) -> Attempt | None:
        """What attempts.jsonl says of an attempt by now."""
        records = read_attempts(self.run_dir)
        return next((one for one in records if one.number == number), None)

    def ended(self, number: int) -> bool:
        """Whether the end of an attempt is recorded."""
        record = self.attempt(number)
        return record is not None and record.cause is not None

    @property
    def newest(self) -> int:
        """Number of the newest attempt that was recorded as started."""
        return max((one.number for one in read_attempts(self.run_dir)), default=0)

    @property
    def supervisor(self) -> tuple[int, Path]:
        """Process id of the newest attempt's supervisor, and its folder in /proc."""
        starts = read_events(self.run_dir.attempts, kinds=frozenset({Kind.ATTEMPT_START}))
        pid = int(list(starts)[-1]["pid"])
        return pid, Path(f"/proc/{pid}")
