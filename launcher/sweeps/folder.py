"""The folder of a sweep: what it was to be, written once, and the runs that were made for it.

    <runs>/<name>-sweep-<utc>/
      sweep.json      the plan: points, settings; written once, by whoever made the folder
      config.yaml     the configuration that the points change
      n2-r1-<utc>-<hash8>/ ...   one folder for every run; a point's run has the point's name
      submissions/    whoever holds the newest one conducts the sweep (launcher.claims)
      cancel.json     made by `cancel`; `resume` takes it away
      sweep.log       output of a conductor in the background
      report.json report.html    written by `report`, and where the command waited for the end

Which run belongs to which point is in the runs' own records, so nothing has to be kept in step.
"""

from __future__ import annotations

import getpass
import json
import shutil
import socket
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.folder import folders_of
from launcher.sweeps.grid import Point
from monitor.runs import LATEST, list_runs
from train.errors import UserError
from train.rundir import RunDir, write_json_atomically, write_text_atomically

if TYPE_CHECKING:
    from launcher.sweeps.plan import SweepPlan

RECORD_NAME, CONFIG_NAME = "sweep.json", "config.yaml"
JSON_NAME, HTML_NAME = "report.json", "report.html"
LOG_NAME, CANCEL_NAME = "sweep.log", "cancel.json"


@dataclass(frozen=True)
class SweepFolder:
    """Paths of one sweep, and its record."""

    root: Path
    record: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder's name, unique among sweeps."""
        return self.root.name

    @property
    def points(self) -> tuple[Point, ...]:
        """All points in the order in which they are to run."""
        return tuple(Point.from_json(value) for value in self.record["points"])

    @property
    def config(self) -> Path:
        """The configuration that the points change."""
        return self.root / CONFIG_NAME

    @property
    def cancel_request(self) -> Path:
        """There as long as nothing of the sweep is to be started."""
        return self.root / CANCEL_NAME

    @property
    def claims(self) -> RunDir:
        """Where conductors claim the sweep."""
        return RunDir(self.root)

    def runs(self) -> dict[str, list[Path]]:
        """Run folders of every point that has some, the oldest first."""
        found: dict[str, list[Path]] = {}
        for folder in list_runs(self.root):
            found.setdefault(_point_of(folder), []).append(folder)
        return found


def make_sweep(plan: SweepPlan) -> SweepFolder:
    """Make the folder, whole or not at all.

    Raises:
        UserError: it cannot be written.
    """
    from launcher.sweeps.plan import record_of

    record = record_of(plan, by=getpass.getuser(), host=socket.gethostname())
    with folders_of(plan.runs_dir):
        temporary = plan.runs_dir / f".sweep-{time.monotonic_ns()}"
        try:
            temporary.mkdir()
            write_text_atomically(temporary / CONFIG_NAME, plan.base.text)
            write_json_atomically(temporary / RECORD_NAME, record)
            return SweepFolder(_published(temporary, plan), record)
        except OSError as error:
            raise UserError(
                f"runs_dir: expected a folder that can be written, got {plan.runs_dir}: "
                f"{error.strerror}; set runs_dir=/some/shared/folder"
            ) from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _published(temporary: Path, plan: SweepPlan) -> Path:
    """Give the folder its name; one that another sweep took in this second waits for the next."""
    while True:
        stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
        target = plan.runs_dir / f"{plan.base.name}-sweep-{stamp}"
        if not target.exists():
            return temporary.rename(target).resolve()
        time.sleep(0.1)


def open_sweep(name: str | Path, runs_dir: str | Path = "runs") -> SweepFolder:
    """The sweep of that folder, name, unique beginning of a name, or the ``latest`` one.

    Raises:
        UserError: there is none, or more than one, or its record cannot be read.
    """
    folder = Path(name).expanduser()
    if folder.is_dir():
        return _read(folder.resolve())
    sweeps = list(_list(Path(runs_dir).expanduser()))
    if str(name) == LATEST and sweeps:
        return _read(sweeps[-1].resolve())
    found = [one for one in sweeps if one.name == str(name)] or [
        one for one in sweeps if one.name.startswith(str(name))
    ]
    if len(found) != 1:
        where = Path(runs_dir).absolute()
        there = ", ".join(one.name for one in (found or sweeps)[-3:]) or "none"
        raise UserError(
            f"sweep: expected the folder or name of one sweep, got {name}; in {where} there is: "
            f"{there} (name another folder by --runs-dir)"
        )
    return _read(found[0].resolve())


def _list(runs_dir: Path) -> Iterator[Path]:
    """Sweep folders, the oldest first."""
    if runs_dir.is_dir():
        found = [entry for entry in runs_dir.iterdir() if (entry / RECORD_NAME).is_file()]
        visible = [entry for entry in found if not entry.name.startswith(".")]
        yield from sorted(visible, key=lambda entry: entry.name.rpartition("-")[2])


def _read(folder: Path) -> SweepFolder:
    path = folder / RECORD_NAME
    try:
        record = json.loads(path.read_text())
        sweep = SweepFolder(folder, record)
        if record["kind"] != "sweep" or not sweep.points:
            raise ValueError("no sweep's record")
    except FileNotFoundError as error:
        what = (
            "a run: see `python -m launcher status`"
            if (folder / "record.json").exists()
            else (f"there is no {RECORD_NAME} in it")
        )
        raise UserError(f"sweep: expected the folder of a sweep, got {folder}; {what}") from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected the record of a sweep, got {error!r}") from error
    return sweep


def _point_of(folder: Path) -> str:
    try:
        return str(json.loads((folder / "record.json").read_text()).get("name"))
    except (OSError, ValueError, AttributeError):
        return ""
