"""What a sweep will do, worked out and checked before anything is started.

Its points are every combination of the grid at every node count, each prepared once. A run that is
timed gets the user's configuration with overrides on top:

    step 1 .. warmup | .. warmup + timed | save | SAVED_STEPS more, during the save | save

So saves cost no timed step, and what one costs is measured apart.
"""

from __future__ import annotations

import getpass
import itertools
import random
import socket
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from submitrain.config import RunConfig
from submitrain.errors import ConfigError, UserError
from submitrain.launcher.checks.objections import request_of
from submitrain.launcher.checks.schedulability import Outcome, judge
from submitrain.launcher.plan.config import LoadedConfig, load_config
from submitrain.launcher.plan.prepare import Prepared, prepare
from submitrain.launcher.sweeps.request import (
    AT_ONCE,
    REPEATS,
    TIMED_STEPS,
    WARMUP_STEPS,
    Combination,
    Point,
    Request,
    label,
)
from submitrain.launcher.sweeps.scaling import Mode
from submitrain.slurm.client import read_cluster

SAVED_STEPS = 10
"""Steps after the timed ones, during a save in the background."""
FREE = "rm -rf checkpoints/step-*"
"""Hook of a timing run that finished, in its folder: nobody resumes it."""


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that can start: every point has been prepared once."""

    request: Request
    base: LoadedConfig
    first: Prepared
    """A launch of it without the points' changes: cluster and folders are those of all."""
    found: Points

    @cached_property
    def points(self) -> tuple[Point, ...]:
        """In the order in which they run."""
        return tuple(in_blocks(self.found.configurations, self.repeats, self.base.digest))

    @property
    def mode(self) -> Mode | None:
        """None without node counts."""
        return None if self.request.nodes is None else self.request.mode or "strong"

    @property
    def repeats(self) -> int:
        """How often each configuration runs."""
        return self.request.repeats or (1 if self.request.nodes is None else REPEATS)

    @property
    def global_batches(self) -> dict[str, int]:
        """Sequences of a step, by point."""
        return {one.id: self.found.batches[one.digest] for one in self.points}

    @property
    def warnings(self) -> list[str]:
        """Of all points, each once."""
        plans = [one.plan for one in self.found.prepared.values()]
        return list(dict.fromkeys(line for plan in plans for line in plan.warnings))

    def record(self) -> dict[str, Any]:
        """What the sweep's folder keeps of it: plain values, written once."""
        request, config = self.request, self.base.config
        every = config.step_scheduler.ckpt_every_steps
        return {
            "v": 1,
            "kind": "sweep",
            "name": self.base.name,
            "created_at": time.time(),
            "by": getpass.getuser(),
            "host": socket.gethostname(),
            "workdir": str(self.first.workdir),
            "config": str(self.base.path) if self.base.path else None,
            "digest": self.base.digest,
            "cluster": self.found.cluster,
            "mode": self.mode,
            "nodes": sorted(request.nodes) if request.nodes else None,
            "grid": {key: list(values) for key, values in request.grid},
            "repeats": self.repeats,
            "warmup_steps": WARMUP_STEPS if request.warmup is None else request.warmup,
            "timed_steps": (request.steps or TIMED_STEPS) if request.nodes else None,
            "at_once": (request.at_once or AT_ONCE) if self.found.cluster == "slurm" else 1,
            "price": request.price,
            "currency": request.currency,
            "ranks_per_node": self.first.plan.ranks_per_node,
            "gpus_per_node": self.first.plan.gpus_per_node,
            "goal": {
                "tokens": request.tokens,
                "steps": config.step_scheduler.max_steps,
                "global_batch": config.batch().global_size,
                "save_every_steps": every if isinstance(every, int) else None,
            },
            "global_batches": self.global_batches,
            "notes": list(self.found.notes),
            "points": [point.as_json() for point in self.points],
        }


def plan_sweep(request: Request) -> SweepPlan:
    """Work out a sweep; nothing is started.

    Raises:
        UserError: the request or a point is wrong; one line for every problem, over all points.
    """
    request.check()
    base = load_config(request.source, request.overrides, request.changes)
    first = prepare(
        request.source,
        overrides=request.overrides,
        cluster=request.cluster,
        changes=request.changes,
    )
    if (entry := first.loaded.config.entry) is not None:
        raise UserError(
            "entry: a sweep sets length, batches and saves of the built-in recipe, which your "
            f"{entry.target} decides itself; launch it once for every node count, or leave entry "
            "out"
        )
    if request.at_once is not None and first.cluster.name == "local":
        raise UserError(
            f"--at-once: expected Slurm, got this machine ({first.cluster.reason}), where runs go "
            "one after the other; leave it out"
        )
    found = Points(request, first.cluster.name)
    if found.problems:
        # A wrong key is wrong with each of its values: reported once.
        once = {line.partition(" (override ")[0]: line for line in reversed(found.problems)}
        raise ConfigError(*reversed(once.values()))
    return SweepPlan(request, base, first, found)


@dataclass
class Points:
    """What the combinations and node counts of a request come to; problems are collected."""

    request: Request
    cluster: str
    configurations: list[Point] = field(default_factory=list)
    """Different ones, not repeated yet."""
    prepared: dict[str, Prepared] = field(default_factory=dict)
    """By digest."""
    batches: dict[str, int] = field(default_factory=dict)
    """Sequences of a step, by digest."""
    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        keys = [key for key, _ in self.request.grid]
        found = list(itertools.product(*(values for _, values in self.request.grid)))
        for number, values in enumerate(found, start=1):
            prefix = f"c{number:0{len(str(len(found)))}d}" if keys else ""
            try:
                self._combination(prefix, tuple(zip(keys, values, strict=True)))
            except ConfigError as error:
                self.problems += error.problems
            except UserError as error:
                self.problems += str(error).splitlines()
        if self.cluster == "slurm" and not self.problems:
            self.problems += impossible(self.prepared.values())

    def _combination(self, prefix: str, combination: Combination) -> None:
        request = self.request
        given = [f"{key}={value}" for key, value in combination]
        loaded = load_config(request.source, [*request.overrides, *given], request.changes)
        if request.nodes is None:
            length: tuple[str, ...] = ()
            if request.steps is not None:
                length = (f"step_scheduler.max_steps={request.steps}",)
                length = (*length, "step_scheduler.num_epochs=none")
            nodes = loaded.config.slurm.nodes.max
            self._point(prefix, nodes, combination, (*given, *length))
            return
        mode = request.mode or "strong"
        warmup = WARMUP_STEPS if request.warmup is None else request.warmup
        measured = warmup + (request.steps or TIMED_STEPS)
        for nodes in sorted(request.nodes):
            if problem := indivisible(loaded.config, nodes, mode):
                where = f" ({label(combination)})" if combination else ""
                self.problems.append(problem + where)
                continue
            timing = timing_overrides(loaded.config, nodes, mode, measured)
            if fixed := [key for key, _ in combination if key in _set_by_timing(timing)]:
                self.problems.append(
                    f"--grid {fixed[0]}: expected a key that a scaling sweep leaves alone, got one "
                    "that it sets itself; leave --nodes out, or this key"
                )
                return
            name = f"{prefix}-n{nodes}" if prefix else f"n{nodes}"
            digest = self._point(name, nodes, combination, (*given, *timing))
            self.batches[digest] = _global_batch(loaded.config, nodes, mode)

    def _point(
        self, name: str, nodes: int, combination: Combination, overrides: tuple[str, ...]
    ) -> str:
        """Prepare a point, unless there is one of the same configuration; returns the digest."""
        prepared = prepare(
            self.request.source,
            overrides=[*self.request.overrides, *overrides],
            cluster=self.cluster,
            changes=self.request.changes,
        )
        digest = prepared.loaded.digest
        if digest in self.prepared:
            same = next(one for one in self.configurations if one.digest == digest)
            self.notes.append(
                f"{name} ({label(combination)}) is the same configuration as {same.id} "
                f"({label(same.combination)}): it runs once"
            )
        else:
            self.prepared[digest] = prepared
            self.batches[digest] = prepared.loaded.config.batch().global_size
            self.configurations.append(Point(name, nodes, 0, combination, overrides, digest))
        return digest


def in_blocks(configurations: Sequence[Point], repeats: int, seed: str) -> list[Point]:
    """Every configuration ``repeats`` times, each repeat a block in an order of its own.

    Whatever drifts while the sweep runs (neighbours, temperature) so affects all alike.
    """
    order, points = random.Random(seed), []
    for repeat in range(1, repeats + 1):
        block = [replace(one, id=f"{one.id}-r{repeat}", repeat=repeat) for one in configurations]
        order.shuffle(block)
        points += block
    return points


def impossible(prepared: Iterable[Prepared]) -> list[str]:
    """Why Slurm would never start some of these points, whose successors would wait for ever."""
    facts = read_cluster()
    if facts is None:
        return []
    judged = [judge(request_of(one.plan.sbatch), facts) for one in prepared]
    found = [one for one in judged if one.outcome is Outcome.IMPOSSIBLE]
    return list(dict.fromkeys(line for one in found for line in one.why))


def timing_overrides(config: RunConfig, nodes: int, mode: Mode, measured: int) -> tuple[str, ...]:
    """What a point at ``nodes`` changes in ``config``, the user's with the grid's values.

    ``measured`` is the last step that is timed. The global batch stays and accumulation follows
    (strong), or what one rank does stays (weak).
    """
    saves, batch, strong = config.checkpoint.enabled, config.batch(), mode == "strong"
    total = measured + (SAVED_STEPS if saves else 0)
    changes: dict[str, object] = {
        "slurm.nodes": nodes,
        "slurm.spare_nodes": 0,
        "step_scheduler.global_batch_size": batch.global_size if strong else "none",
        "step_scheduler.grad_acc_steps": "none" if strong else batch.accumulation,
        "step_scheduler.max_steps": total,
        "step_scheduler.num_epochs": "none",
        "step_scheduler.ckpt_every_steps": measured if saves else "none",
        "step_scheduler.val_every_steps": "none",
        "validation_dataset": "none",
        "validation_dataloader": "none",
        "sample": "none",
        "logging.log_every_steps": 1,
        "on_success": FREE if saves else "none",
        "on_failure": "none",
    }
    if saves:
        changes["checkpoint.save_consolidated"] = "never"
        changes["checkpoint.keep_last_n_checkpoints"] = 1
    if config.distributed.dp_size is not None:
        changes["distributed.dp_size"] = "none"
    if config.wandb is not None:
        changes["wandb.enabled"] = "false"
    if config.warmup_steps > total:
        given = config.step_scheduler.warmup_steps
        key = "step_scheduler.warmup_steps" if given else "lr_scheduler.lr_warmup_steps"
        changes[key] = total
    return tuple(f"{key}={value}" for key, value in changes.items())


def _set_by_timing(overrides: tuple[str, ...]) -> frozenset[str]:
    """Keys that a timing run sets itself, so that a grid over them would have no effect."""
    return frozenset(text.partition("=")[0] for text in overrides) - {
        "step_scheduler.global_batch_size",
        "step_scheduler.grad_acc_steps",
    }


def _global_batch(config: RunConfig, nodes: int, mode: Mode) -> int:
    """Sequences of a step at ``nodes``."""
    batch = config.batch()
    if mode == "strong":
        return batch.global_size
    return batch.local_size * batch.accumulation * nodes * config.slurm.ntasks_per_node


def indivisible(config: RunConfig, nodes: int, mode: Mode) -> str | None:
    """Why the batch does not come out even at ``nodes``, with the arithmetic; None when it does."""
    batch = config.batch()
    per_node = batch.local_size * config.slurm.ntasks_per_node
    together, total = per_node * nodes, batch.global_size
    if mode == "weak" or total % together == 0:
        return None
    fitting = [str(n) for n in range(1, 4 * nodes + 1) if total % (per_node * n) == 0]
    choice = f"make it a multiple of {per_node} (step_scheduler.global_batch_size)"
    if fitting:
        choice = f"choose nodes from {', '.join(fitting)}"
    return (
        f"--nodes {nodes}: strong scaling keeps the global batch of {total} sequences, and local "
        f"batch {batch.local_size} x {nodes * config.slurm.ntasks_per_node} ranks = {together}"
        f" does not divide it ({total} / {together} = {total / together:.2f} micro-batches); "
        f"{choice}, or write --mode weak"
    )
