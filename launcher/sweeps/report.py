"""What a sweep measured: its runs, read and judged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from submitrain.launcher.sweeps.folder import (
    PointState,
    SweepFolder,
    SweepState,
    point_states,
    sweep_state,
)
from submitrain.launcher.sweeps.measure import Measurement, Wanted, read_measurement, read_waits
from submitrain.launcher.sweeps.request import Combination, Point, label
from submitrain.launcher.sweeps.scaling import Curve, Terms, curve_of
from submitrain.run_facts import read_evidence
from submitrain.status import RunState
from submitrain.text import counted

EMULATED = "emulated, not performance"
LEAST_SHARE = 0.5
"""Of the timed steps that were asked for: a repeat with fewer warm ones is not counted."""


@dataclass(frozen=True)
class PointReport:
    """One point and what its newest run measured; nothing as long as it has not started."""

    state: PointState
    measured: Measurement = field(default_factory=Measurement)
    unused: str = ""
    """Why its speed is not counted."""
    failures: int = 0
    """Runs of this point that failed; one that was cancelled did not."""

    @property
    def point(self) -> Point:
        """Which one."""
        return self.state.point

    @property
    def loss(self) -> float | None:
        """Training loss of the last step, when it has finished."""
        losses = self.measured.losses
        return losses[-1][1] if losses and self.state.finished else None

    def as_json(self) -> dict[str, Any]:
        """Plain values; times in seconds."""
        found, status = self.measured, self.state.status
        same = (*("tokens_per_s", "step_s", "startup_s", "wait_s", "restarts", "validation_loss"),)
        return {
            **self.point.as_json(),
            "state": self.state.word,
            "why": status.why if status else "",
            "folder": str(self.state.folder) if self.state.folder else None,
            "job_ids": list(status.job_ids) if status else [],
            **{name: getattr(found, name) for name in same},
            "timed_steps": found.steps,
            "left_out_steps": found.left_out,
            "unused": self.unused,
            "failures": self.failures,
            "machines": found.machines,
            "loss": self.loss,
            "saves": vars(found.saves) if found.saves else None,
        }


@dataclass(frozen=True)
class Series:
    """One combination of the grid's values: its points, and how it scales."""

    combination: Combination
    points: tuple[PointReport, ...]
    curve: Curve

    @property
    def label(self) -> str:
        """``lr=1e-4``; empty without a grid."""
        return label(self.combination)

    def failures(self, nodes: int) -> int:
        """Runs at ``nodes`` that failed."""
        return sum(one.failures for one in self.points if one.point.nodes == nodes)


@dataclass(frozen=True)
class SweepReport:
    """What is known so far; shows itself in a notebook."""

    folder: str
    record: Mapping[str, Any] = field(repr=False)
    state: SweepState
    series: tuple[Series, ...] = field(repr=False)

    @property
    def points(self) -> list[PointReport]:
        """All points, by series."""
        return [point for one in self.series for point in one.points]

    @property
    def scaling(self) -> bool:
        """Whether node counts were compared."""
        return self.record["mode"] is not None

    @property
    def emulated(self) -> str:
        """Why these numbers are no performance; empty when each node was a machine of its own."""
        emulated = [one.measured for one in self.points if one.measured.emulated]
        worst = max(emulated, key=lambda one: one.nodes, default=None)
        if worst is None:
            return ""
        machines = counted(worst.machines or 0, "machine")
        return f"{worst.nodes} nodes were {machines}, and shared its cores"

    @property
    def unit(self) -> str:
        """What is paid for."""
        return "GPU" if self.record["gpus_per_node"] else "rank"

    def as_json(self) -> dict[str, Any]:
        """Plain values; times in seconds, prices in ``currency``."""
        keys = (
            *("name", "cluster", "mode", "nodes", "grid", "repeats", "warmup_steps"),
            *("timed_steps", "price", "currency", "ranks_per_node", "gpus_per_node", "goal"),
        )
        return {
            "folder": self.folder,
            "state": str(self.state),
            **{key: self.record[key] for key in keys},
            "emulated": bool(self.emulated),
            "emulated_why": f"{EMULATED}: {self.emulated}" if self.emulated else "",
            "series": [
                {
                    "combination": dict(one.combination),
                    **one.curve.as_json(),
                    "points": [point.as_json() for point in one.points],
                }
                for one in self.series
            ],
            "notes": list(self.record["notes"]),
        }

    def _repr_html_(self) -> str:
        from submitrain.launcher.sweeps.render import notebook_report

        return notebook_report(self)


def read_sweep(sweep: SweepFolder) -> SweepReport:
    """Judge a sweep as far as it has come; asks the scheduler."""
    states = point_states(sweep)
    waits = read_waits(one.folder for one in states if one.folder)
    found = [_point_report(sweep.record, one, waits) for one in states]
    in_order = sorted(found, key=lambda one: (one.point.repeat, one.point.id))
    combinations = dict.fromkeys(one.point.combination for one in in_order)
    return SweepReport(
        folder=str(sweep.folder),
        record=sweep.record,
        state=sweep_state(sweep, states),
        series=tuple(_series(sweep.record, one, found) for one in combinations),
    )


def _point_report(
    record: Mapping[str, Any], state: PointState, waits: Mapping[str, float]
) -> PointReport:
    if state.folder is None:
        return PointReport(state)
    timed, ranks = record["timed_steps"], record["ranks_per_node"]
    wanted = Wanted(
        world_size=state.point.nodes * ranks if timed else None,
        warmup=record["warmup_steps"],
        until_step=record["warmup_steps"] + timed if timed else None,
    )
    found = read_measurement(state.folder, wanted, ranks_per_node=ranks, waits=waits)
    unused = ""
    if not state.finished:
        unused = "has not finished"
    elif found.tokens_per_s is None:
        unused = "no warm step: shorter than its warm-up, or no tokens recorded"
    elif timed and found.steps < LEAST_SHARE * timed:
        unused = f"{found.steps} of {timed} timed steps were warm and undisturbed"
    # By what each run's own supervisor concluded; of the newest by what the scheduler adds.
    earlier = [read_evidence(folder).summary or {} for folder in state.folders[:-1]]
    words = [*(str(summary.get("state")) for summary in earlier), state.word]
    return PointReport(state, found, unused, words.count(RunState.FAILED))


def _series(
    record: Mapping[str, Any], combination: Combination, found: Sequence[PointReport]
) -> Series:
    ours = [one for one in found if one.point.combination == combination]
    points = sorted(ours, key=lambda one: (one.point.nodes, one.point.repeat))
    repeats: dict[int, list[Measurement]] = {}
    for one in points:
        if not one.unused and one.state.folder is not None:
            repeats.setdefault(one.point.nodes, []).append(one.measured)
    batches = record["global_batches"]
    terms = Terms(
        mode=record["mode"] or "strong",
        global_batches={one.point.nodes: batches[one.point.id] for one in points},
        **record["goal"],
        price=record["price"],
        units_per_node=record["gpus_per_node"] or record["ranks_per_node"],
    )
    return Series(combination, tuple(points), curve_of(repeats, terms))
