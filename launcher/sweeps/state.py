"""How the points of a sweep are doing: the states of their newest runs, by one query for all."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from launcher.claims import read_claims
from launcher.jobs import look
from launcher.sweeps.folder import SweepFolder
from launcher.sweeps.grid import Point
from monitor.status import RunState, RunStatus
from train.rundir import RunDir


class SweepState(StrEnum):
    """Where a sweep is in its life."""

    RUNNING = "running"
    FINISHED = "finished"
    """Every point has finished."""
    INCOMPLETE = "incomplete"
    """Nothing goes on, and points are missing or have failed: `resume` runs them."""
    CANCELLED = "cancelled"

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless someone resumes it."""
        return self is not SweepState.RUNNING


@dataclass(frozen=True)
class PointState:
    """One point, all runs that were made for it (the oldest first), and how the newest is doing."""

    point: Point
    folders: tuple[Path, ...]
    status: RunStatus | None
    """None as long as it was not started."""

    @property
    def folder(self) -> Path | None:
        """Its newest run."""
        return self.folders[-1] if self.folders else None

    @property
    def finished(self) -> bool:
        """Whether it need not run again."""
        return self.status is not None and self.status.state is RunState.FINISHED

    @property
    def alive(self) -> bool:
        """Whether it runs, or waits in the queue, or may do so."""
        status = self.status
        if status is None or status.state.ended:
            return False
        # A client that was killed before it submitted leaves a folder that nothing will come of.
        return status.state is not RunState.UNKNOWN or bool(status.job_ids)

    @property
    def stopping(self) -> bool:
        """Whether it was cancelled and has not ended yet, as far as anybody knows."""
        if not self.alive or self.folder is None or self.status is None:
            return False
        asked = RunDir(self.folder).cancel_request.exists()
        return asked and self.status.state is not RunState.UNKNOWN

    @property
    def word(self) -> str:
        """Its state in one word."""
        return "not started" if self.status is None else str(self.status.state)


def point_states(sweep: SweepFolder) -> list[PointState]:
    """All points in their order."""
    runs = sweep.runs()
    newest = [folders[-1] for folders in runs.values()]
    statuses = {Path(one.folder): one for one in look(newest)}
    states = []
    for point in sweep.points:
        folders = tuple(runs.get(point.id, ()))
        status = statuses.get(folders[-1]) if folders else None
        states.append(PointState(point, folders, status))
    return states


def sweep_state(sweep: SweepFolder, states: Sequence[PointState]) -> SweepState:
    """What the points, a cancellation and a living conductor make together."""
    if all(one.finished for one in states):
        return SweepState.FINISHED
    if any(one.alive for one in states) or conducted(sweep):
        return SweepState.RUNNING
    if sweep.cancel_request.exists():
        return SweepState.CANCELLED
    return SweepState.INCOMPLETE


def conducted(sweep: SweepFolder) -> bool:
    """Whether a living process starts points of this sweep."""
    claims = read_claims(sweep.claims)
    return bool(claims) and claims[-1].held


def counts(states: Sequence[PointState]) -> str:
    """``5 of 9 finished, 1 running, 3 not started``"""
    words = [one.word for one in states]
    others = [word for word in dict.fromkeys(words) if word != RunState.FINISHED]
    finished = f"{words.count(RunState.FINISHED)} of {len(words)} finished"
    return ", ".join([finished, *(f"{words.count(word)} {word}" for word in others)])
