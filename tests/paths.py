"""Where things of the repository are, wherever a test file lies."""

from __future__ import annotations

from pathlib import Path

TESTS = Path(__file__).resolve().parent
REPOSITORY = TESTS.parent
TOY_RANK = TESTS / "toy_rank.py"
"""A training script without torch, for tests of what is around it."""
