"""Components named by import path (``_target_``)."""

from __future__ import annotations

import importlib
from typing import Any

from train.errors import ConfigError


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
            raise ConfigError(f"{key}: importing {name} needs {error.name}: {error}") from error
        for attribute in parts[end:]:
            if not hasattr(found, attribute):
                raise ConfigError(
                    f"{key}: {path}: {name} has no {attribute!r}; expected an import path such as "
                    "torch.optim.AdamW or my_package.module.Name"
                )
            found = getattr(found, attribute)
        return found
    raise ConfigError(
        f"{key}: cannot import {path!r}; expected an import path such as torch.optim.AdamW, of a "
        "package that is installed or in the folder you launch from"
    )
