"""Imports components by path and checks them; a process of its own, run by ``plan.targets``.

Reads a JSON list of slots from standard input; its last line is ``@probe`` and a JSON object with
``problems`` and ``notes``. Imports torch, if at all, by name and only here.
"""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import json
import sys
from difflib import get_close_matches
from typing import Any

from submitrain.errors import ConfigError
from submitrain.imports import IMPORT_ROOT, load_component


def main() -> int:
    """Check what standard input asks for; always exits 0, the answer says what is wrong."""
    # Our package is found by now; beside it may lie folders with the names of the user's modules.
    sys.path.sort(key=str(IMPORT_ROOT).__eq__)
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
        check = {"optimizer": _optimizer, "entry": _entry}.get(slot["kind"], _call)
        problems += check(slot, found)
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
    where, path = f"{slot['section']}._target_", slot["path"]
    if not callable(found) or isinstance(found, type):
        return [
            f"{where}: expected a function that takes a RunContext, got {path} ({_kind(found)})"
        ]
    if inspect.iscoroutinefunction(found) or inspect.isgeneratorfunction(found):
        return [
            f"{where}: expected a plain function, got {path}, whose body does not run when it is "
            "called (async, or it yields)"
        ]
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):
        return []
    first = next(iter(signature.parameters.values()), None)
    if first is None or first.kind in (first.KEYWORD_ONLY, first.VAR_KEYWORD):
        return [
            f"{where}: expected a function whose first parameter takes the RunContext, got "
            f"{path}{signature}"
        ]
    return _signature(slot, found, skip=1)


def _call(slot: dict[str, Any], found: Any) -> list[str]:
    if not callable(found):
        return [
            f"{slot['section']}._target_: expected a class or function, got {slot['path']} "
            f"({_kind(found)})"
        ]
    return _signature(slot, found, skip=0)


def _signature(slot: dict[str, Any], found: Any, *, skip: int) -> list[str]:
    """Keyword arguments that ``found`` does not take, or needs and does not get."""
    section, path, given = slot["section"], slot["path"], slot["arguments"]
    try:
        parameters = list(inspect.signature(found).parameters.values())[skip:]
    except (TypeError, ValueError):
        return []
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    missing = [p.name for p in named if p.default is p.empty and p.name not in given]
    if slot["kind"] in ("model", "entry") and missing:
        return [
            f"{section}._target_: {path} also needs {', '.join(missing)}; add "
            f"{'it' if len(missing) == 1 else 'them'} to {section}"
        ]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return []
    names = [p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY]
    problems = []
    for key in given:
        if key not in names:
            near = get_close_matches(key, names, n=1)
            hint = f"did you mean {near[0]}? " if near else ""
            problems.append(
                f"{section}.{key}: {path} takes no such argument; {hint}"
                f"allowed: {', '.join(names) or 'none'}"
            )
    return problems


def _kind(found: Any) -> str:
    return "a class" if isinstance(found, type) else f"a {type(found).__name__}"


if __name__ == "__main__":
    sys.exit(main())
