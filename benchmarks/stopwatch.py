"""Counts tokens and seconds of one rank's training, the same way for every contestant."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass


@dataclass
class Stopwatch:
    """Runs from the end of the last warm-up step to the end of the last step.

    ``count`` comes before ``step_done`` of the step that a micro-batch belongs to.
    """

    warmup: int
    steps: int = 0
    wall_s: float = 0.0
    cpu_s: float = 0.0
    tokens: int = 0
    """Useful ones: they carry text. Padding does not count."""
    label_tokens: int = 0
    slots: int = 0
    """Positions that were computed, padding included."""

    def count(self, *, tokens: int, label_tokens: int, slots: int) -> None:
        """Add one micro-batch, unless it belongs to the warm-up."""
        if self.steps >= self.warmup:
            self.tokens += tokens
            self.label_tokens += label_tokens
            self.slots += slots

    def step_done(self) -> None:
        """Note the end of an optimizer step."""
        self.steps += 1
        wall, cpu = time.perf_counter(), cpu_seconds()
        if self.steps == self.warmup:
            self._began = (wall, cpu)
        elif self.steps > self.warmup:
            self.wall_s, self.cpu_s = wall - self._began[0], cpu - self._began[1]

    def as_json(self) -> dict[str, float]:
        """What was counted and measured."""
        names = ("wall_s", "cpu_s", "tokens", "label_tokens", "slots")
        return {name: getattr(self, name) for name in names}


def cpu_seconds() -> float:
    """CPU time of this process so far."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime
