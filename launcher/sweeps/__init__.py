"""Sweeps: many runs of one configuration, over node counts and over any keys, judged together."""
