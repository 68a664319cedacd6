"""The folder of a sweep: what it was to be, written once, and the runs that were made for it.

    <runs>/<name>-sweep-<utc>/
      sweep.json      the plan: points, settings; written once, by whoever made the folder
      config.yaml     the configuration that the points change
      n2-r1-<utc>-<hash8>/ ...   one folder for every run; a point's run has the point's name
      submissions/    whoever holds the newest claim (launcher/submit/claims.py) starts points
      cancel.json     made by `cancel`; `resume` takes it away
      sweep.log       output of the process that starts points in the background
      report.json report.html    written by `report`, and where the command waited for the end

Which run belongs to which point is in the runs' own records, so nothing has to be kept in step.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.errors import UserError
from submitrain.launcher.submit.claims import read_claims
from submitrain.launcher.submit.start import folders_of
from submitrain.launcher.sweeps.request import Point
from submitrain.run_folder import (
    LATEST,
    RunDir,
    list_runs,
    write_json_atomically,
    write_text_atomically,
)
from submitrain.status import RunState, RunStatus, read_statuses

if TYPE_CHECKING:
    from submitrain.launcher.sweeps.plan import SweepPlan


RECORD_NAME, CONFIG_NAME = "sweep.json", "config.yaml"
JSON_NAME, HTML_NAME = "report.json", "report.html"
LOG_NAME, CANCEL_NAME = "sweep.log", "cancel.json"


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep, what its record says, and the runs that were made for it."""

    folder: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "folder", Path(self.folder).resolve())

    @cached_property
    def record(self) -> Mapping[str, Any]:
        """``sweep.json``, which never changes.

        Raises:
            UserError: this is no sweep's folder, or its record cannot be read.
        """
        path = self.folder / RECORD_NAME
        try:
            record: Mapping[str, Any] = json.loads(path.read_text())
            if record["kind"] != "sweep" or not record["points"]:
                raise ValueError("no sweep's record")
            for value in record["points"]:
                Point.from_json(value)
        except FileNotFoundError as error:
            what = f"there is no {RECORD_NAME} in it"
            if (self.folder / "record.json").exists():
                what = "a run: see `python -m launcher status`"
            raise UserError(
                f"sweep: expected the folder of a sweep, got {self.folder}; {what}"
            ) from error
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: expected the record of a sweep, got {error!r}") from error
        return record

    @property
    def points(self) -> tuple[Point, ...]:
        """All points in the order in which they are to run."""
        return tuple(Point.from_json(value) for value in self.record["points"])

    @property
    def cluster(self) -> str:
        """local or slurm."""
        return str(self.record["cluster"])

    @property
    def config(self) -> Path:
        """The configuration that the points change."""
        return self.folder / CONFIG_NAME

    @property
    def cancel_request(self) -> Path:
        """There as long as nothing of the sweep is to be started."""
        return self.folder / CANCEL_NAME

    @property
    def claims(self) -> RunDir:
        """Where processes claim to start points of the sweep."""
        return RunDir(self.folder)

    @property
    def claimed(self) -> bool:
        """Whether a living process starts points of this sweep."""
        claims = read_claims(self.claims)
        return bool(claims) and claims[-1].held

    def run_folders(self) -> dict[str, list[Path]]:
        """Run folders of every point that has some, the oldest first."""
        found: dict[str, list[Path]] = {}
        for folder in list_runs(self.folder):
            try:
                name = str(json.loads((folder / "record.json").read_text()).get("name"))
            except (OSError, ValueError, AttributeError):
                name = ""
            found.setdefault(name, []).append(folder)
        return found


def make_sweep(plan: SweepPlan) -> Path:
    """Make the folder, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    with folders_of(plan.first.runs_dir):
        temporary = plan.first.runs_dir / f".sweep-{time.monotonic_ns()}"
        try:
            temporary.mkdir()
            write_text_atomically(temporary / CONFIG_NAME, plan.base.text)
            write_json_atomically(temporary / RECORD_NAME, plan.record())
            while True:
                stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
                target = plan.first.runs_dir / f"{plan.base.name}-sweep-{stamp}"
                if not target.exists():
                    return temporary.rename(target).resolve()
                time.sleep(0.1)  # another sweep took the name of this second
        except OSError as error:
            raise UserError(
                f"runs_dir: expected a folder that can be written, got {plan.first.runs_dir}: "
                f"{error.strerror}; set runs_dir=/some/shared/folder"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def find_sweep(name: str | Path, runs_dir: str | Path = "runs") -> Path:
    """The folder of that name, unique beginning of a name, or of the ``latest`` sweep.

    Raises:
        UserError: there is none, or more than one.
    """
    folder, runs = Path(name).expanduser(), Path(runs_dir).expanduser()
    if folder.is_dir():
        return folder.resolve()
    sweeps = [one for one in runs.glob("[!.]*") if (one / RECORD_NAME).is_file()]
    sweeps.sort(key=lambda one: one.name.rpartition("-")[2])
    found = [one for one in sweeps if one.name == str(name)]
    found = found or [one for one in sweeps if one.name.startswith(str(name))]
    if str(name) == LATEST:
        found = sweeps[-1:]
    if len(found) != 1:
        there = ", ".join(one.name for one in (found or sweeps)[-3:]) or "none"
        raise UserError(
            f"sweep: expected the folder or name of one sweep, got {name}; in {runs.absolute()} "
            f"there is: {there} (name another folder by --runs-dir)"
        )
    return found[0].resolve()


class SweepState(StrEnum):
    """Where a sweep is in its life."""

    RUNNING = "running"
    FINISHED = "finished"
    """Every point has finished."""
    INCOMPLETE = "incomplete"
    """Nothing runs, and points are missing or have failed: `resume` runs them."""
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
    runs = sweep.run_folders()
    newest = [folders[-1] for folders in runs.values()]
    statuses = {Path(one.folder): one for one in read_statuses(newest)}
    states = []
    for point in sweep.points:
        folders = tuple(runs.get(point.id, ()))
        states.append(PointState(point, folders, statuses.get(folders[-1]) if folders else None))
    return states


def sweep_state(sweep: SweepFolder, states: Sequence[PointState]) -> SweepState:
    """What the points, a cancellation and a process that starts points make together."""
    if all(one.finished for one in states):
        return SweepState.FINISHED
    if any(one.alive for one in states) or sweep.claimed:
        return SweepState.RUNNING
    return SweepState.CANCELLED if sweep.cancel_request.exists() else SweepState.INCOMPLETE


def counts(states: Sequence[PointState]) -> str:
    """``5 of 9 finished, 1 running, 3 not started``"""
    words = [one.word for one in states]
    others = [word for word in dict.fromkeys(words) if word != RunState.FINISHED]
    finished = f"{words.count(RunState.FINISHED)} of {len(words)} finished"
    return ", ".join([finished, *(f"{words.count(word)} {word}" for word in others)])
