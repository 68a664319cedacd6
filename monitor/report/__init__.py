"""The report of a run: read (edge) -> model (pure) -> page and text (pure)."""

from __future__ import annotations
