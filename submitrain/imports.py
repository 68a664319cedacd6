"""Imports by name (``_target_``), and of large libraries without the garbage collector."""

from __future__ import annotations

import gc
import importlib
from collections.abc import Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from submitrain.errors import ConfigError

IMPORT_ROOT = Path(__file__).resolve().parent.parent
"""The folder from which ``import submitrain`` works: sources, installation, or a run's code."""


@contextmanager
def gc_paused() -> Iterator[None]:
    """Import inside: no garbage is collected meanwhile, and what was imported is never scanned.

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


def load_component(path: str, key: str) -> Any:
    """The object that ``path`` (``torch.optim.AdamW``) names; ``key`` is what the user wrote it at.

    Raises:
        ConfigError: no such module or attribute, with the part that is missing.
    """
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        name = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name and (name == error.name or name.startswith(error.name + ".")):
                continue
            raise ConfigError(
                f"{key}: importing {name} fails: {error}; install what it needs"
            ) from error
        except Exception as error:  # a module may raise anything while it is imported
            raise ConfigError(
                f"{key}: importing {name} fails: {type(error).__name__}: {error}"
            ) from error
        return _attribute(found, parts, end, key)
    raise ConfigError(
        f"{key}: expected an import path such as torch.optim.AdamW, got {path!r}: no module "
        f"{parts[0]!r} is installed here or lies in this folder; install it or correct the path"
    )


def _attribute(found: Any, parts: list[str], start: int, key: str) -> Any:
    for index, attribute in enumerate(parts[start:], start=start):
        if not hasattr(found, attribute):
            near = get_close_matches(attribute, dir(found), n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ConfigError(f"{key}: {'.'.join(parts[:index])} has no {attribute!r}{hint}")
        found = getattr(found, attribute)
    return found
