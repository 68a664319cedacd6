"""Importing large libraries without the garbage collector in the way. Imports nothing large."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def uncollected() -> Iterator[None]:
    """Import inside: no garbage is collected meanwhile, and what there is by then is never looked
    at again.

    torch and transformers make 600,000 objects that stay; six full collections during their import
    find 200 that do not (see docs/LOG.md).
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_enabled:
            gc.enable()
