"""A user's own training function: ``context`` is what it is given, ``main`` calls it."""
