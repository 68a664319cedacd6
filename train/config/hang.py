"""``resilience.hang``: how long a rank may be busy with one thing before it counts as hung.

Imports no torch.
"""

from __future__ import annotations

from pydantic import Field

from train.config.base import Section
from train.config.types import OptionalInt

_KEY_OF_PHASE = {
    "import": "start_s",
    "rendezvous": "start_s",
    "data": "data_s",
    "build": "build_s",
    "load": "build_s",
    "first_step": "first_step_s",
    "step": "step_s",
    "validate": "validate_s",
    "save": "save_s",
    "export": "export_s",
    "exit": "export_s",
}
_STEADY = frozenset({"step", "validate", "save"})
"""Phases in which nothing big is imported or set up any more."""
START_UP_PATIENCE = 5
"""A process that sets up libraries may hold the interpreter lock for so much longer."""
MISSED_BEATS = 6


class HangConfig(Section):
    """Seconds without progress after which a rank is hung, by phase; none or 0 = no limit.

    Progress is a step, a micro-batch, an agreement, a part of a save, another phase. What the run
    itself was seen to need widens a budget (5 x the slowest), never a wish to be faster.
    """

    silence_s: OptionalInt = Field(
        60,
        ge=0,
        description="Seconds without a heartbeat while others beat (at least 6 heartbeats): the "
        "process is frozen, or holds the interpreter lock. 5 x as long while it starts up.",
    )
    start_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for imports, and for meeting the other ranks."
    )
    data_s: OptionalInt = Field(
        7200, ge=0, description="Seconds for a download, or between two pieces of tokenized data."
    )
    build_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for building the model, and for loading a checkpoint."
    )
    first_step_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for an attempt's first step (compilation, caches)."
    )
    step_s: OptionalInt = Field(
        60,
        ge=0,
        description="Seconds in a step, at least; the budget is 5 x the 99th percentile of this "
        "run's steps where that is longer.",
    )
    validate_s: OptionalInt = Field(
        1800,
        ge=0,
        description="Seconds in a validation until this run has been through one; then 5 x the "
        "slowest, but at least 300 (or this, if shorter).",
    )
    save_s: OptionalInt = Field(
        1800,
        ge=0,
        description="Seconds in a save until this run has been through one; then 5 x the slowest, "
        "but at least 300 (or this, if shorter).",
    )
    export_s: OptionalInt = Field(
        1800, ge=0, description="Seconds for the export, the sample, and for leaving."
    )

    def limit_s(self, phase: str) -> float | None:
        """Seconds that a phase may be without progress, as configured; None = no limit."""
        seconds = getattr(self, _KEY_OF_PHASE.get(phase, "start_s"))
        return float(seconds) if seconds else None

    def silence_limit_s(self, phase: str, heartbeat_s: float) -> float | None:
        """Seconds that a rank in this phase may be silent; None = no limit.

        Loading shared libraries holds the interpreter lock, and from a cold network file system it
        takes minutes: during imports only ``start_s`` counts.
        """
        if not self.silence_s:
            return None
        usual = max(float(self.silence_s), MISSED_BEATS * heartbeat_s)
        if phase in _STEADY:
            return usual
        if phase != "import":
            return START_UP_PATIENCE * usual
        start_s = self.limit_s(phase)
        return None if start_s is None else max(start_s, usual)
