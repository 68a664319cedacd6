"""Crash-safe, verified, elastic checkpoints; ``checkpointer`` saves and loads them."""
