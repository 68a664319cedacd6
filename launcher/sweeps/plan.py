"""What a sweep will do, worked out and checked before anything is started."""

from __future__ import annotations

import getpass
import socket
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    Shape,
    check,
    combinations,
    global_batch,
    in_blocks,
    indivisible,
    label,
    set_by_timing,
    timing_overrides,
)
from submitrain.slurm.cluster import read_cluster

if TYPE_CHECKING:
    from submitrain.launcher.sweeps.scaling import Mode


@dataclass(frozen=True)
class SweepPlan:
    """A sweep that can start: every point has been prepared once."""

    request: Request
    base: LoadedConfig
    cluster: str
    cluster_reason: str
    runs_dir: Path
    workdir: Path
    mode: Mode | None
    """None without node counts."""
    shape: Shape
    repeats: int
    points: tuple[Point, ...]
    """In the order in which they run."""
    ranks_per_node: int
    gpus_per_node: int
    global_batches: Mapping[str, int]
    """Sequences of a step, by point."""
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = field(default=())

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
            "workdir": str(self.workdir),
            "config": str(self.base.path) if self.base.path else None,
            "digest": self.base.digest,
            "cluster": self.cluster,
            "mode": self.mode,
            "nodes": sorted(request.nodes) if request.nodes else None,
            "grid": {key: list(values) for key, values in request.grid},
            "repeats": self.repeats,
            "warmup_steps": self.shape.warmup,
            "timed_steps": self.shape.timed if request.scaling else None,
            "at_once": (request.at_once or AT_ONCE) if self.cluster == "slurm" else 1,
            "price": request.price,
            "currency": request.currency,
            "ranks_per_node": self.ranks_per_node,
            "gpus_per_node": self.gpus_per_node,
            "goal": {
                "tokens": request.tokens,
                "steps": config.step_scheduler.max_steps,
                "global_batch": config.batch().global_size,
                "save_every_steps": every if isinstance(every, int) else None,
            },
            "global_batches": dict(self.global_batches),
            "notes": list(self.notes),
            "points": [point.as_json() for point in self.points],
        }


def plan_sweep(request: Request) -> SweepPlan:
    """Work out a sweep; nothing is started.

    Raises:
        UserError: the request or a point is wrong; one line for every problem, over all points.
    """
    check(request)
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
    timed = request.steps or TIMED_STEPS
    warmup = WARMUP_STEPS if request.warmup is None else request.warmup
    planner = _Planner(request, Shape(warmup, timed), first.cluster.name)
    planner.all_points()
    if first.cluster.name == "slurm" and not planner.problems:
        planner.problems += impossible(planner.prepared.values())
    if planner.problems:
        # A wrong key is wrong with each of its values: said once.
        said = {line.partition(" (override ")[0]: line for line in reversed(planner.problems)}
        raise ConfigError(*reversed(said.values()))
    repeats = request.repeats or (REPEATS if request.scaling else 1)
    points = in_blocks(planner.configurations, repeats, seed=base.digest)
    batches = {one.id: planner.batches[one.digest] for one in points}
    plans = list(planner.prepared.values())
    return SweepPlan(
        request=request,
        base=base,
        cluster=first.cluster.name,
        cluster_reason=first.cluster.reason,
        runs_dir=first.runs_dir,
        workdir=first.workdir,
        mode=(request.mode or "strong") if request.scaling else None,
        shape=planner.shape,
        repeats=repeats,
        points=tuple(points),
        ranks_per_node=first.plan.ranks_per_node,
        gpus_per_node=first.plan.gpus_per_node,
        global_batches=batches,
        notes=tuple(planner.notes),
        warnings=tuple(dict.fromkeys(line for one in plans for line in one.plan.warnings)),
    )


class _Planner:
    """Goes through all combinations and node counts; collects problems instead of stopping."""

    def __init__(self, request: Request, shape: Shape, cluster: str) -> None:
        self._request, self._cluster = request, cluster
        self.shape = shape
        self.configurations: list[Point] = []
        self.prepared: dict[str, Prepared] = {}
        """By digest."""
        self.batches: dict[str, int] = {}
        self.problems: list[str] = []
        self.notes: list[str] = []

    def all_points(self) -> None:
        found = list(combinations(self._request.grid))
        for number, combination in enumerate(found, start=1):
            prefix = f"c{number:0{len(str(len(found)))}d}" if self._request.grid else ""
            try:
                self._combination(prefix, combination)
            except ConfigError as error:
                self.problems += error.problems
            except UserError as error:
                self.problems += str(error).splitlines()

    def _combination(self, prefix: str, combination: Combination) -> None:
        given = [f"{key}={value}" for key, value in combination]
        overrides = [*self._request.overrides, *given]
        loaded = load_config(self._request.source, overrides, self._request.changes)
        if self._request.nodes is None:
            self._point(prefix, loaded.config.slurm.nodes.max, combination, self._as_it_is(given))
            return
        mode = self._request.mode or "strong"
        for nodes in sorted(self._request.nodes):
            if problem := indivisible(loaded.config, nodes, mode):
                where = f" ({label(combination)})" if combination else ""
                self.problems.append(problem + where)
                continue
            timing = timing_overrides(loaded.config, nodes, mode, self.shape)
            if vain := [key for key, _ in combination if key in set_by_timing(timing)]:
                self.problems.append(
                    f"--grid {vain[0]}: expected a key that a scaling sweep leaves alone, got one "
                    "that it sets itself; leave --nodes out, or this key"
                )
                return
            name = f"{prefix}-n{nodes}" if prefix else f"n{nodes}"
            digest = self._point(name, nodes, combination, (*given, *timing))
            self.batches[digest] = global_batch(loaded.config, nodes, mode)

    def _as_it_is(self, given: Sequence[str]) -> tuple[str, ...]:
        """A run of the configured length, or of ``--steps``."""
        if self._request.steps is None:
            return tuple(given)
        length = (f"step_scheduler.max_steps={self._request.steps}",)
        return (*given, *length, "step_scheduler.num_epochs=none")

    def _point(
        self, name: str, nodes: int, combination: Combination, overrides: tuple[str, ...]
    ) -> str:
        prepared = prepare(
            self._request.source,
            overrides=[*self._request.overrides, *overrides],
            cluster=self._cluster,
            changes=self._request.changes,
        )
        digest = prepared.loaded.digest
        if digest in self.prepared:
            same = next(one for one in self.configurations if one.digest == digest)
            self.notes.append(
                f"{name} ({label(combination)}) is the same configuration as {same.id} "
                f"({label(same.combination)}): it runs once"
            )
            return digest
        self.prepared[digest] = prepared
        self.batches[digest] = prepared.loaded.config.batch().global_size
        self.configurations.append(Point(name, nodes, 0, combination, overrides, digest))
        return digest


def impossible(prepared: Iterable[Prepared]) -> list[str]:
    """Why Slurm would never start some of these points, whose successors would wait for ever."""
    facts = read_cluster()
    if facts is None:
        return []
    judged = [judge(request_of(one.plan.sbatch), facts) for one in prepared]
    found = [one for one in judged if one.outcome is Outcome.IMPOSSIBLE]
    return list(dict.fromkeys(line for one in found for line in one.why))
