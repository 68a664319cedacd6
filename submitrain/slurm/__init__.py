"""Slurm: one client, parsers that are pure functions, and what a cluster has."""
