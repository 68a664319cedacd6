"""TrainState: everything of a run's progress that is no tensor. Imports no torch.

Data order, learning rate and random numbers are pure functions of these numbers, so nothing else
has to be kept for an exact resume.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields

Json = str | int | float | bool | None


@dataclass(frozen=True)
class TrainState:
    """Progress at an optimizer-step boundary; the same on every rank."""

    step: int
    """Finished optimizer steps."""
    position: int = 0
    """Units of data consumed or left out since the run began, over all epochs."""
    tokens: int = 0
    """Real tokens (no padding) that went through the model."""
    label_tokens: int = 0
    """Tokens that had a loss."""
    global_batch_size: int = 0
    """Units per optimizer step."""
    units_per_epoch: int = 0
    """Units in one pass over the data."""
    data_fingerprint: str = ""
    """What the data, tokenizer and packing were; another one makes ``position`` meaningless."""
    wandb_id: str | None = None
    """Run id at Weights & Biases, kept across requeues."""
    extra: Mapping[str, Json] = field(default_factory=dict)
    """Whatever else the training function wants back."""

    @property
    def epochs_done(self) -> int:
        """Whole passes over the data so far."""
        return self.position // self.units_per_epoch if self.units_per_epoch else 0

    def as_json(self) -> dict[str, object]:
        """Plain values, ready for ``json.dumps``."""
        return {**asdict(self), "extra": dict(self.extra)}

    @classmethod
    def from_json(cls, value: Mapping[str, object]) -> TrainState:
        """Inverse of ``as_json``; fields of a later version are ignored.

        Raises:
            ValueError: ``step`` is missing or no number.
        """
        if not isinstance(value.get("step"), int):
            raise ValueError(f"train state without a step: {dict(value)!r:.200}")
        known = {item.name for item in fields(cls)}
        return cls(**{key: item for key, item in value.items() if key in known})  # type: ignore[arg-type]
