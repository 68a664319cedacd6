"""Imports components by path and looks at them; a process of its own, run by ``plan.targets``.

Reads a JSON list of slots from standard input; its last line is ``@probe`` and a JSON object with
``problems`` and ``notes``. Imports torch, if at all, by name and only here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

from submitrain.errors import ConfigError
from submitrain.imports import load_component


def main() -> int:
    """Check what standard input asks for; always exits 0, the answer says what is wrong."""
    problems, notes = [], []
    for slot in json.load(sys.stdin):
        where = f"{slot['section']}._target_"
        if slot["kind"] == "optimizer" and importlib.util.find_spec("torch") is None:
            notes.append(f"{where} ({slot['path']}): not checked here, torch is not installed")
            continue
        try:
            found = load_component(slot["path"], where)
        except ConfigError as error:
            problems.append(str(error))
            continue
        look = {"optimizer": _optimizer, "entry": _entry}.get(slot["kind"], _call)
        problems += look(slot, found)
    sys.stdout.write("\n@probe " + json.dumps({"problems": problems, "notes": notes}))
    return 0


def _optimizer(slot: dict[str, Any], found: Any) -> list[str]:
    where, path = f"{slot['section']}._target_", slot["path"]
    optim = importlib.import_module("torch.optim")
    if not (isinstance(found, type) and issubclass(found, optim.Optimizer)):
        return [
            f"{where}: expected a subclass of torch.optim.Optimizer, got {path} ({_kind(found)})"
        ]
    if issubclass(found, optim.LBFGS):
        return [f"{where}: expected an optimizer that takes one gradient a step, got {path}"]
    problems = _signature(slot, found, skip=1)
    if problems or not found.__module__.startswith("torch."):
        return problems
    torch = importlib.import_module("torch")
    arguments = {k: tuple(v) if isinstance(v, list) else v for k, v in slot["arguments"].items()}
    try:
        found([torch.nn.Parameter(torch.zeros(2, 2))], **arguments)
    except (TypeError, ValueError) as error:
        return [f"{slot['section']}: {path} refuses its arguments: {error}"]
    return []


def _entry(slot: dict[str, Any], found: Any) -> list[str]:
    """A training function: one RunContext, then the section's other keys as keyword arguments."""
    if not callable(found) or isinstance(found, type):
        return [
            f"{slot['section']}._target_: expected a function that takes a RunContext, got "
            f"{slot['path']} ({_kind(found)})"
        ]
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        return [
            f"{slot['section']}._target_: expected a plain function, got {slot['path']}, whose "
            "body does not run when it is called (async, or it yields)"
        ]
    try:
        parameters = list(inspect.signature(found).parameters.values())
    except (TypeError, ValueError):
        return []
    takes = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.POSITIONAL_ONLY)
    first = next(iter(parameters), None)
    if first is None or first.kind not in (*takes, inspect.Parameter.VAR_POSITIONAL):
        return [
            f"{slot['section']}._target_: expected a function whose first parameter takes the "
            f"RunContext, got {slot['path']}{inspect.signature(found)}"
        ]
    missing = _missing(parameters[1:], slot["arguments"])
    if missing:
        return [_also_needs(slot, missing)]
    return _signature(slot, found, skip=1)


def _call(slot: dict[str, Any], found: Any) -> list[str]:
    if not callable(found):
        return [
            f"{slot['section']}._target_: expected a class or function, got {slot['path']} "
            f"({_kind(found)})"
        ]
    return _signature(slot, found, skip=0)


def _signature(slot: dict[str, Any], found: Any, *, skip: int) -> list[str]:
    """Keyword arguments that ``found`` does not take."""
    try:
        parameters = list(inspect.signature(found).parameters.values())[skip:]
    except (TypeError, ValueError):
        return []
    missing = _missing(parameters, slot["arguments"])
    if slot["kind"] == "model" and missing:
        return [_also_needs(slot, missing)]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []
    names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    problems = []
    for key in slot["arguments"]:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(
                f"{slot['section']}.{key}: {slot['path']} takes no such argument; {hint}"
                f"allowed: {', '.join(names) or 'none'}"
            )
    return problems


def _missing(parameters: list[inspect.Parameter], given: Collection[str]) -> list[str]:
    """Parameters without a default that are not given."""
    return [
        p.name
        for p in parameters
        if p.default is p.empty
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and p.name not in given
    ]


def _also_needs(slot: dict[str, Any], missing: list[str]) -> str:
    return (
        f"{slot['section']}._target_: {slot['path']} also needs {', '.join(missing)}; add "
        f"{'it' if len(missing) == 1 else 'them'} to {slot['section']}"
    )


def _kind(found: Any) -> str:
    return "a class" if isinstance(found, type) else f"a {type(found).__name__}"


if __name__ == "__main__":
    sys.exit(main())
