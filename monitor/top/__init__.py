"""All runs live on a terminal: ``python -m monitor top``."""

from __future__ import annotations
