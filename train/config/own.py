"""What a configuration with an ``entry`` may say: the built-in recipe's settings are refused.

Pure; imports no torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from train.config.run import RunConfig

RECIPE_SECTIONS = (
    "recipe", "model", "dataset", "validation_dataset", "packed_sequence", "step_scheduler",
    "dataloader", "validation_dataloader", "optimizer", "lr_scheduler", "peft",
    "training_optimizations", "clip_grad_norm", "compile", "sample",
)  # fmt: skip
"""Sections that only the built-in recipe reads."""

RECIPE_KEYS = {
    "distributed": frozenset(
        {"target", "dp_size", "dp_replicate_size", "tp_size", "cp_size"}
        | {"reshard_after_forward", "defer_grad_sync"}
    ),
    "checkpoint": frozenset({"model_save_format", "save_consolidated", "async_save"}),
    "logging": frozenset({"log_sample_ids"}),
    "resilience": frozenset(
        {"max_skipped_steps", "max_rollbacks", "loss_spike", "loss_spike_z", "loss_spike_steps"}
        | {"anomaly_window_steps", "mttf"}
    ),
}
"""Of sections that both read, the fields that only the built-in recipe reads."""


def entry_problems(config: RunConfig) -> Iterator[str]:
    """Settings that a training function of the user's own would not see, one line each."""
    for name in RECIPE_SECTIONS:
        if name in config.model_fields_set and getattr(config, name) is not None:
            yield (
                f"{name}: expected none beside entry, got a value: only the built-in recipe reads "
                "it; give your function what it needs as keys of entry, and remove this"
            )
    for name, fields in RECIPE_KEYS.items():
        section = getattr(config, name)
        given = [one for one in type(section).model_fields if one in section.model_fields_set]
        for key in (*(one for one in given if one in fields), *(section.model_extra or {})):
            written = "_target_" if key == "target" else key
            yield (
                f"{name}.{written}: expected none beside entry, got a value: only the built-in "
                "recipe reads it; decide it in your function, and remove this"
            )
