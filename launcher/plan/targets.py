"""Checks of ``_target_`` before anything is submitted: it exists and suits its place.

What is built in is checked here; other import paths are imported in a short process of their own
(``launcher.plan.probe``), so that this one never imports torch. Where that says nothing (ranks run
in a
container, torch is not installed here) the plan says "not checked here".
"""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.config.automodel import MODEL, STDLIB, TEXT
from submitrain.imports import IMPORT_ROOT

PROBE_TIMEOUT_S = 120.0
_COMMON = {"betas": "pair", "eps": "number", "weight_decay": "number"}
_SWITCHES = dict.fromkeys(("foreach", "maximize", "capturable", "differentiable", "fused"), "bool")
OPTIMIZERS: dict[str, dict[str, str]] = {
    "torch.optim.AdamW": {**_COMMON, **_SWITCHES, "amsgrad": "bool"},
    "torch.optim.Adam": {
        **_COMMON,
        **_SWITCHES,
        "amsgrad": "bool",
        "decoupled_weight_decay": "bool",
    },
    "torch.optim.SGD": {
        "momentum": "number",
        "dampening": "number",
        "weight_decay": "number",
        "nesterov": "bool",
        **{k: v for k, v in _SWITCHES.items() if k != "capturable"},
    },
}
"""Arguments of the usual optimizers, so that they need no process; a test holds them to torch's."""


@dataclass(frozen=True)
class TargetReport:
    """Problems (one line each, the key first) and what could not be checked on this machine."""

    problems: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """One ``_target_``: where it stands, what it must be, the keyword arguments it will get."""

    section: str
    kind: str
    path: str
    arguments: tuple[tuple[str, Any], ...]


def check_targets(config: RunConfig, *, workdir: Path | None = None) -> TargetReport:
    """Check every component that the configuration names by import path."""
    problems: list[str] = []
    open_slots: list[Slot] = []
    for slot in slots(config):
        known = OPTIMIZERS.get(slot.path) if slot.kind == "optimizer" else None
        if known is not None:
            problems += _known_optimizer(slot, known)
        elif problem := _impossible(slot):
            problems.append(problem)
        else:
            open_slots.append(slot)
    if problems or not open_slots:
        return TargetReport(tuple(problems))
    named = ", ".join(f"{slot.section}._target_ ({slot.path})" for slot in open_slots)
    if config.slurm.in_container:
        return TargetReport(notes=(f"{named}: not checked here, ranks run in the container",))
    return _probe(tuple(open_slots), str(workdir or Path.cwd()))


def slots(config: RunConfig) -> Iterator[Slot]:
    """The components that are not built in."""
    if config.entry is not None:
        yield _slot("entry", "entry", config.entry.target, config.entry.extra)
        return
    optimizer = config.optimizer
    arguments = {"lr": optimizer.lr, **optimizer.extra}
    if optimizer.weight_decay is not None:
        arguments["weight_decay"] = optimizer.weight_decay
    yield _slot("optimizer", "optimizer", optimizer.target, arguments)
    if config.model.target != MODEL:
        given = config.model.model_dump(include={"pretrained_model_name_or_path", "config"})
        given = {key: value for key, value in given.items() if value is not None}
        yield _slot("model", "model", config.model.target, {**given, **config.model.extra})
    for section in ("dataset", "validation_dataset"):
        data = getattr(config, section)
        if data is not None and data.target not in (TEXT, STDLIB):
            yield _slot(section, "dataset", data.target, data.extra)


def _slot(section: str, kind: str, path: str, arguments: dict[str, Any]) -> Slot:
    frozen = tuple((key, json.dumps(value)) for key, value in sorted(arguments.items()))
    return Slot(section, kind, path, frozen)


_EXAMPLES = {
    "optimizer": "torch.optim.AdamW",
    "model": f"{MODEL} or nemo_automodel.NeMoAutoModelForCausalLM.from_pretrained",
    "dataset": f"{TEXT}, {STDLIB} or my_package.data.MyDataset",
    "entry": "my_package.training.main",
}


def _impossible(slot: Slot) -> str | None:
    """Why a path cannot be right, without importing anything."""
    where, example = f"{slot.section}._target_", _EXAMPLES[slot.kind]
    parts = slot.path.split(".")
    if len(parts) < 2 or not all(part.isidentifier() for part in parts):
        return f"{where}: expected an import path such as {example}, got {slot.path!r}"
    if slot.kind == "dataset" and parts[0] == "nemo_automodel":
        return (
            f"{where}: {slot.path} is a data set of NeMo AutoModel that is not built in here; "
            f"instruction data loads with _target_: {TEXT} and column_mapping, any other by a "
            "class of your own (see docs/automodel.md)"
        )
    if parts[0] in sys.stdlib_module_names:
        return (
            f"{where}: expected the import path of {_a(slot.kind)} such as {example}, got "
            f"{slot.path!r}, which is in Python's standard library"
        )
    return None


def _a(kind: str) -> str:
    return f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}"


def _known_optimizer(slot: Slot, known: dict[str, str]) -> Iterator[str]:
    from submitrain.config.schema import near

    for key, text in slot.arguments:
        if key == "lr":
            continue
        value = json.loads(text)
        if key not in known:
            guess = near(key, [*known, "lr"])
            hint = f"did you mean {guess}? " if guess else ""
            yield (
                f"{slot.section}.{key}: {slot.path} takes no such argument; {hint}allowed: "
                f"lr, {', '.join(sorted(known))}"
            )
        elif problem := _value_problem(known[key], value):
            yield f"{slot.section}.{key}: expected {problem}, got {value!r}"


def _value_problem(kind: str, value: Any) -> str | None:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind == "number":
        return None if number and value >= 0 else "a number >= 0"
    if kind == "bool":
        return None if value is None or isinstance(value, bool) else "true, false or none"
    pair = isinstance(value, list) and len(value) == 2
    ok = pair and all(isinstance(item, int | float) and 0 <= item < 1 for item in value)
    return None if ok else "two numbers >= 0 and < 1, such as [0.9, 0.95]"


@functools.lru_cache(maxsize=64)
def _probe(open_slots: tuple[Slot, ...], workdir: str) -> TargetReport:
    """Import and inspect in another process, with the ranks' Python and the user's folder."""
    request = [
        {
            "section": slot.section,
            "kind": slot.kind,
            "path": slot.path,
            "arguments": {key: json.loads(text) for key, text in slot.arguments},
        }
        for slot in open_slots
    ]
    named = ", ".join(f"{slot.section}._target_ ({slot.path})" for slot in open_slots)
    path = [
        str(IMPORT_ROOT),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
        workdir,
    ]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "submitrain.launcher.plan.probe"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "CUDA_VISIBLE_DEVICES": ""},
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return TargetReport(notes=(f"{named}: not checked here: {error}",))
    answer = done.stdout.rpartition("\n@probe ")[2]
    try:
        found = json.loads(answer)
        return TargetReport(tuple(found["problems"]), tuple(found["notes"]))
    except (ValueError, KeyError, TypeError):
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return TargetReport(
            (f"{open_slots[0].section}._target_: importing {named} ended Python itself: {last}",)
        )
