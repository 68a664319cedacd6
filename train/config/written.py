"""The configuration as a run folder keeps it: complete, in our spelling, placeholders unread."""

from __future__ import annotations

from typing import Any

from train.config.own import RECIPE_KEYS, RECIPE_SECTIONS
from train.config.resolve import Resolved
from train.config.targets import STDLIB, TEXT


def written_tree(resolved: Resolved) -> dict[str, Any]:
    """Every key with its value, defaults included, in our spelling; placeholders are kept.

    A data set class of the user's own gets only the keys that were given, so there defaults stay
    out; beside an ``entry`` so does all that only the built-in recipe reads.
    """
    dumped: dict[str, Any] = resolved.config.model_dump(mode="json", by_alias=True)
    for name in ("dataset", "validation_dataset"):
        data = getattr(resolved.config, name)
        if data is not None and data.target not in (TEXT, STDLIB):
            dumped[name] = data.model_dump(mode="json", by_alias=True, exclude_unset=True)
    if resolved.config.entry is not None:
        dumped = _without_recipe(dumped)
    return {name: _overlaid(dumped[name], resolved.document.tree.get(name)) for name in dumped}


def _without_recipe(dumped: dict[str, Any]) -> dict[str, Any]:
    """Only what a training function of the user's own, or the launcher, reads."""
    kept = {name: value for name, value in dumped.items() if name not in RECIPE_SECTIONS}
    for name, fields in RECIPE_KEYS.items():
        left_out = fields | {"_target_"}
        kept[name] = {key: item for key, item in kept[name].items() if key not in left_out}
    return kept


def _overlaid(value: Any, written: Any) -> Any:
    if isinstance(written, str) and "${" in written:
        return written
    if isinstance(value, dict) and isinstance(written, dict):
        return {key: _overlaid(item, written.get(key)) for key, item in value.items()}
    if isinstance(value, list) and isinstance(written, list) and len(value) == len(written):
        return [_overlaid(item, other) for item, other in zip(value, written, strict=True)]
    return value
