"""All runs live on a terminal: ``python -m monitor top``."""
