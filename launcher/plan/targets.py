"""Checks of ``_target_`` before anything is submitted: it exists and suits its place.

What is built in is checked here; other import paths are imported in a short process of their own
(``launcher.plan.probe``), so that this one never imports torch. Where that says nothing (ranks run
in a container, torch is not installed here) the plan says "not checked here".
"""

from __future__ import annotations

import functools
import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
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
        **_COMMON, **_SWITCHES, "amsgrad": "bool", "decoupled_weight_decay": "bool",
    },
    "torch.optim.SGD": {
        "momentum": "number", "dampening": "number", "weight_decay": "number", "nesterov": "bool",
        **{key: kind for key, kind in _SWITCHES.items() if key != "capturable"},
    },
}  # fmt: skip
"""Arguments of the usual optimizers, so that they need no process; a test holds them to torch's."""
TORCH_OPTIMIZERS = (
    "ASGD", "Adadelta", "Adafactor", "Adagrad", "Adam", "AdamW", "Adamax", "LBFGS", "Muon", "NAdam",
    "RAdam", "RMSprop", "Rprop", "SGD", "SparseAdam",
)  # fmt: skip
"""What ``torch.optim`` has, for machines without torch; a test holds it to torch's."""


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
    contained = config.slurm.in_container
    without_torch = importlib.util.find_spec("torch") is None
    for slot in open_slots:
        module, _, name = slot.path.rpartition(".")
        unknown = module == "torch.optim" and name not in TORCH_OPTIMIZERS
        if slot.kind == "optimizer" and unknown and (contained or without_torch):
            near = get_close_matches(name, TORCH_OPTIMIZERS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            return TargetReport((f"{slot.section}._target_: {module} has no {name!r}{hint}",))
    if contained:
        named = ", ".join(f"{slot.section}._target_ ({slot.path})" for slot in open_slots)
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
            f"{where}: expected the import path of {'an' if slot.kind[0] in 'aeiou' else 'a'} "
            f"{slot.kind} such as {example}, got {slot.path!r}, which is in Python's standard "
            "library"
        )
    return None


def _known_optimizer(slot: Slot, known: dict[str, str]) -> Iterator[str]:
    for key, text in slot.arguments:
        value, kind = json.loads(text), known.get(key)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        problem = None
        if key == "lr":
            continue
        if kind is None:
            guess = get_close_matches(key, [*known, "lr"], n=1, cutoff=0.7)
            hint = f"did you mean {guess[0]}? " if guess else ""
            yield (
                f"{slot.section}.{key}: {slot.path} takes no such argument; {hint}allowed: "
                f"lr, {', '.join(sorted(known))}"
            )
        elif kind == "number" and not (number and value >= 0):
            problem = "a number >= 0"
        elif kind == "bool" and not (value is None or isinstance(value, bool)):
            problem = "true, false or none"
        elif kind == "pair":
            pair = value if isinstance(value, list) and len(value) == 2 else [-1]
            if not all(isinstance(item, int | float) and 0 <= item < 1 for item in pair):
                problem = "two numbers >= 0 and < 1, such as [0.9, 0.95]"
        if problem:
            yield f"{slot.section}.{key}: expected {problem}, got {value!r}"


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
    path = [str(IMPORT_ROOT), os.environ.get("PYTHONPATH", ""), workdir]
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-m", "submitrain.launcher.plan.probe"],
            input=json.dumps(request),
            capture_output=True,
            text=True,
            timeout=PROBE_TIMEOUT_S,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(filter(None, path)),
                "CUDA_VISIBLE_DEVICES": "",
            },
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
