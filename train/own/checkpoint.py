"""A published checkpoint as a training function sees it. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Checkpoint:
    """Files that the function wrote, whole and verified; never write into ``folder``."""

    folder: Path
    step: int
    """Optimizer steps finished when it was made."""
    extra: Mapping[str, str | int | float | bool | None]
    """The plain values that were given to ``publish_checkpoint``."""
