"""Serves what is known of all runs to Prometheus: ``python -m monitor serve``."""

from __future__ import annotations
