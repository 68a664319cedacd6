"""Metrics of all runs for Prometheus: ``python -m monitor serve``."""
