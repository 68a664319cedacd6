"""The model of a run: architecture, attention, sharding, weights."""
