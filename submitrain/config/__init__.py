"""The configuration of a run: one typed, frozen model. Imports no torch.

``RunConfig.model_validate(mapping)`` checks shape and contradictions; reading YAML with line
numbers, overrides and placeholders is ``launcher.plan.config``'s work.
"""

from __future__ import annotations

from submitrain.config.run import RunConfig

__all__ = ["RunConfig"]
