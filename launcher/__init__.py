"""Start a run and keep it alive: ``from launcher import launch``.

Nothing here imports torch; see ``docs/architecture.md`` for the layers.
"""
