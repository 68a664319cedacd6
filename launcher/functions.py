"""Training functions as Python objects: ``launch(fn)`` and ``launch(cfg, entry=fn)``.

Ranks import the function by its path, in processes of their own and on other machines, so only one
that lies in a module can be launched. Nothing is pickled. Pure; imports no torch.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from train.errors import ConfigError

Source = str | Path | Mapping[str, Any] | object


def as_config(
    source: Source | Callable[..., object], changes: Mapping[str, Any]
) -> tuple[Any, dict[str, Any]]:
    """``source`` and ``changes`` with every function replaced by an ``entry`` that names it.

    Raises:
        ConfigError: a function that ranks cannot import, with the way out.
    """
    changes = dict(changes)
    if _is_function(changes.get("entry")):
        changes["entry"] = {"_target_": import_path(changes["entry"])}
    if _is_function(source):
        source = {"entry": {"_target_": import_path(source)}}
    elif isinstance(source, Mapping) and _is_function(source.get("entry")):
        source = {**source, "entry": {"_target_": import_path(source["entry"])}}
    return source, changes


def _is_function(value: object) -> bool:
    return callable(value) and not isinstance(value, type)


def import_path(function: Any) -> str:
    """``my_package.training.main``, by which ranks import ``function``.

    Raises:
        ConfigError: it has no such path: a lambda, a method, a nested function, one of a notebook
            or of the script that is running.
    """
    module, name = getattr(function, "__module__", None), getattr(function, "__qualname__", None)
    if not inspect.isfunction(function) or not module or not name:
        raise ConfigError(
            f"entry: expected a plain function, got {function!r}; ranks import it by its path: "
            "write a function in a module, and give it what it needs as keys of entry"
        )
    if module == "__main__":
        raise ConfigError(f"entry: {_out_of_main(name)}")
    if "<" in name or "." in name:
        raise ConfigError(
            f"entry: expected a function at the top level of a module, got {module}.{name}; ranks "
            "import it by its path: move it out of the function or class around it"
        )
    return f"{module}.{name}"


def _out_of_main(name: str) -> str:
    """The way out for a function of a notebook, of a prompt or of the running script."""
    what = name if name.isidentifier() else "it"
    file = getattr(sys.modules["__main__"], "__file__", None)
    if file is None:
        return (
            f"expected a function of a module, got {name} of this notebook or prompt, which ranks "
            "cannot import; begin its cell with `%%writefile my_training.py`, run it, then "
            f"`from my_training import {what}` and launch that"
        )
    stem = Path(file).stem
    return (
        f"expected a function of a module, got {name} of the script that is running ({file}), "
        f"which ranks would run again to import it; move {what} into a module beside it, such as "
        f"{stem}_training.py, and launch that"
    )
