"""What a sweep measured: reads its runs, and judges them by ``launcher.sweeps.scaling``."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from submitrain.launcher.sweeps.folder import (
    PointState,
    SweepFolder,
    SweepState,
    point_states,
    sweep_state,
)
from submitrain.launcher.sweeps.request import Combination, Point, label
from submitrain.launcher.sweeps.scaling import Curve, Goal, Repeat, Terms, curve_of
from submitrain.launcher.sweeps.timing import RunMeasurement, Wanted, read_measurement, read_waits
from submitrain.run_facts import read_evidence
from submitrain.status import RunState
from submitrain.text import counted

EMULATED = "emulated, not performance"
LEAST_SHARE = 0.5
"""Of the timed steps that were asked for: a repeat with fewer warm ones is not counted."""


@dataclass(frozen=True)
class PointReport:
    """One point and what its newest run measured; None as long as it has not started."""

    state: PointState
    measurement: RunMeasurement | None
    unused: str = ""
    """Why its speed is not counted."""
    failures: int = 0
    """Runs of this point that failed; one that was cancelled did not."""

    @property
    def point(self) -> Point:
        """Which one."""
        return self.state.point

    @property
    def tokens_per_s(self) -> float | None:
        """Over all ranks; None when no step was counted."""
        return self.measurement.timing.tokens_per_s if self.measurement else None

    @property
    def loss(self) -> float | None:
        """Training loss of the last step, when it has finished."""
        known = self.measurement is not None and self.measurement.losses and self.state.finished
        return self.measurement.losses[-1][1] if self.measurement and known else None

    def as_json(self) -> dict[str, Any]:
        """Plain values; times in seconds."""
        found, status = self.measurement, self.state.status
        timing = found.timing if found else None
        return {
            **self.point.as_json(),
            "state": self.state.word,
            "why": status.why if status else "",
            "folder": str(self.state.folder) if self.state.folder else None,
            "job_ids": list(status.job_ids) if status else [],
            "tokens_per_s": self.tokens_per_s,
            "step_s": timing.step_s if timing else None,
            "timed_steps": timing.steps if timing else 0,
            "left_out_steps": timing.left_out if timing else 0,
            "unused": self.unused,
            "startup_s": timing.startup_s if timing else None,
            "wait_s": found.wait_s if found else None,
            "restarts": found.restarts if found else 0,
            "failures": self.failures,
            "machines": found.sharing.machines if found else None,
            "loss": self.loss,
            "validation_loss": found.validation_loss if found else None,
            "saves": vars(timing.saves) if timing and timing.saves else None,
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
        sharing = [one.measurement.sharing for one in self.points if one.measurement]
        worst = max(
            (one for one in sharing if one.emulated), key=lambda one: one.nodes, default=None
        )
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
    combinations = dict.fromkeys(one.point.combination for one in sorted(found, key=_by_id))
    return SweepReport(
        folder=str(sweep.root),
        record=sweep.record,
        state=sweep_state(sweep, states),
        series=tuple(_series(sweep.record, one, found) for one in combinations),
    )


def _by_id(one: PointReport) -> tuple[int, str]:
    return (one.point.repeat, one.point.id)


def _point_report(
    record: Mapping[str, Any], state: PointState, waits: Mapping[str, float]
) -> PointReport:
    if state.folder is None:
        return PointReport(state, None)
    point = state.point
    timed = record["timed_steps"]
    wanted = Wanted(
        world_size=point.nodes * record["ranks_per_node"] if timed else None,
        warmup=record["warmup_steps"],
        until_step=record["warmup_steps"] + timed if timed else None,
    )
    ranks = record["ranks_per_node"]
    found = read_measurement(state.folder, wanted, ranks_per_node=ranks, waits=waits)
    return PointReport(state, found, _unused(state, found, timed), _failures(state))


def _failures(state: PointState) -> int:
    """By what each run's own supervisor concluded; of the newest by what the scheduler adds."""
    earlier = [read_evidence(folder).summary or {} for folder in state.folders[:-1]]
    words = [str(summary.get("state")) for summary in earlier]
    return [*words, state.word].count(RunState.FAILED)


def _unused(state: PointState, found: RunMeasurement, timed: int | None) -> str:
    """Why the speed of a point is not counted; empty when it is."""
    status = state.status
    if status is None or status.state is not RunState.FINISHED:
        return "has not finished"
    if found.timing.tokens_per_s is None:
        return "no warm step: shorter than its warm-up, or no tokens recorded"
    if timed and found.timing.steps < LEAST_SHARE * timed:
        return f"{found.timing.steps} of {timed} timed steps were warm and undisturbed"
    return ""


def _series(
    record: Mapping[str, Any], combination: Combination, found: Sequence[PointReport]
) -> Series:
    points = tuple(sorted((p for p in found if p.point.combination == combination), key=_by_nodes))
    repeats: dict[int, list[Repeat]] = {}
    for nodes, repeat in _repeats(points):
        repeats.setdefault(nodes, []).append(repeat)
    return Series(combination, points, curve_of(repeats, _terms(record, points)))


def _by_nodes(one: PointReport) -> tuple[int, int]:
    return (one.point.nodes, one.point.repeat)


def _repeats(points: Sequence[PointReport]) -> Iterator[tuple[int, Repeat]]:
    for one in points:
        if one.unused or one.measurement is None:
            continue
        timing = one.measurement.timing
        assert timing.tokens_per_s and timing.step_s and timing.tokens_per_step
        yield (
            one.point.nodes,
            Repeat(
                tokens_per_s=timing.tokens_per_s,
                step_s=timing.step_s,
                tokens_per_step=timing.tokens_per_step,
                startup_s=timing.startup_s,
                wait_s=one.measurement.wait_s,
                restarts=one.measurement.restarts,
                saves=timing.saves,
            ),
        )


def _terms(record: Mapping[str, Any], points: Sequence[PointReport]) -> Terms:
    batches = record["global_batches"]
    return Terms(
        mode=record["mode"] or "strong",
        global_batches={one.point.nodes: batches[one.point.id] for one in points},
        goal=Goal(**record["goal"]),
        price=record["price"],
        units_per_node=record["gpus_per_node"] or record["ranks_per_node"],
    )
