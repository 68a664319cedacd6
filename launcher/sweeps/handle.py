"""The handle of one sweep: made from its folder alone, in this process or in any other one."""

from __future__ import annotations

import getpass
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict

from submitrain.config.schema import near
from submitrain.errors import SubmitrainError, UserError
from submitrain.launcher.cli.screen import Screen
from submitrain.launcher.run import WAIT_POLL_S, Run
from submitrain.launcher.submit.start import folders_of
from submitrain.launcher.sweeps.conduct import conduct, start_in_background
from submitrain.launcher.sweeps.folder import (
    HTML_NAME,
    JSON_NAME,
    PointState,
    SweepFolder,
    SweepState,
    conducted,
    counts,
    make_sweep,
    open_sweep,
    point_states,
    sweep_state,
)
from submitrain.launcher.sweeps.plan import SweepPlan
from submitrain.launcher.sweeps.report import SweepReport, read_sweep
from submitrain.launcher.sweeps.request import Request, grid_of, parse_price
from submitrain.launcher.sweeps.scaling import Mode
from submitrain.run_folder import write_json_atomically, write_text_atomically


class SweepOptions(TypedDict, total=False):
    """What ``sweep`` takes besides a configuration and node counts; see ``docs/sweeps.md``."""

    mode: Mode
    repeats: int
    grid: Mapping[str, Sequence[Any]]
    steps: int
    warmup: int
    tokens: float
    price: float | str
    at_once: int
    overrides: Sequence[str]
    cluster: str
    changes: Mapping[str, Any]


def request_of(source: Any, nodes: Sequence[int] | None, options: SweepOptions) -> Request:
    """A request from Python.

    Raises:
        UserError: an option that is none.
    """
    given: dict[str, Any] = dict(options)
    for name in given:
        if name not in SweepOptions.__annotations__:
            guess = near(name, list(SweepOptions.__annotations__))
            hint = f"did you mean {guess}?" if guess else "see docs/sweeps.md"
            raise UserError(f"sweep: unknown option {name}; {hint}")
    if "price" in given:
        given["price"], given["currency"] = parse_price(str(given["price"]))
    if "grid" in given:
        given["grid"] = grid_of(given["grid"])
    given["overrides"] = tuple(given.get("overrides", ()))
    whole = None if nodes is None else tuple(int(one) for one in nodes)
    return Request(source, nodes=whole, **given)


@dataclass(frozen=True)
class Quiet:
    """A screen that shows nothing."""

    def say(self, line: str) -> None:
        """Nothing."""

    def doing(self, text: str) -> None:
        """Nothing."""


@dataclass(frozen=True)
class Sweep:
    """One sweep. All knowledge is read anew from its folder and the scheduler when asked for."""

    folder: Path

    @classmethod
    def open(cls, name: str | Path, *, runs_dir: str | Path = "runs") -> Sweep:
        """The sweep of that folder, name, unique beginning of a name, or the ``latest`` one.

        Raises:
            UserError: there is none, or more than one.
        """
        return cls(open_sweep(name, runs_dir).root)

    @classmethod
    def begin(cls, plan: SweepPlan, screen: Screen | None = None, *, stay: bool = False) -> Sweep:
        """Make its folder and start it; with ``stay`` a local one is conducted by this process.

        Raises:
            SubmitrainError: the folder cannot be written, or the cluster refuses a job. Where that
                was the first one nothing stays behind; else what was submitted before goes on, and
                ``resume`` does the rest.
        """
        with folders_of(plan.runs_dir):
            sweep = cls(make_sweep(plan).root)
            try:
                sweep._conduct(screen or Quiet(), stay=stay)
            except SubmitrainError:
                if not sweep.runs():
                    shutil.rmtree(sweep.folder, ignore_errors=True)
                raise
        return sweep

    @property
    def name(self) -> str:
        """The folder's name."""
        return self.folder.name

    @property
    def _files(self) -> SweepFolder:
        return open_sweep(self.folder)

    @property
    def cluster(self) -> str:
        """local or slurm."""
        return str(self._files.record["cluster"])

    def __repr__(self) -> str:
        state, points = self.status()
        return f"Sweep {self.name}: {state}, {counts(points)}"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def status(self) -> tuple[SweepState, list[PointState]]:
        """How it is doing as a whole, and each point; asks the scheduler once."""
        files = self._files
        states = point_states(files)
        return sweep_state(files, states), states

    def runs(self) -> dict[str, Run]:
        """The newest run of each point that was started."""
        return {name: Run(folders[-1]) for name, folders in self._files.runs().items()}

    def report(self) -> SweepReport:
        """What it has measured so far; shows itself in a notebook."""
        return read_sweep(self._files)

    def write_report(self, html: Path | None = None) -> SweepReport:
        """Write ``report.json`` and ``report.html`` into the folder, and the page to ``html``.

        Raises:
            UserError: one of them cannot be written.
        """
        from submitrain.launcher.sweeps.render import sweep_page

        report = self.report()
        page = sweep_page(report)
        try:
            text = json.dumps(report.as_json(), indent=1) + "\n"
            write_text_atomically(self.folder / JSON_NAME, text)
            for path in [self.folder / HTML_NAME, *([html] if html else [])]:
                write_text_atomically(path, page)
        except OSError as error:
            raise UserError(
                f"--html: expected a file that can be written, got {error.filename}: "
                f"{error.strerror}"
            ) from error
        return report

    def wait(self, timeout: float | None = None) -> SweepState:
        """Wait until nothing of it goes on any more.

        Raises:
            TimeoutError: it goes on after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll_s = WAIT_POLL_S.get(self.cluster, 1.0)
        while not (found := self.status())[0].ended:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.name} after {timeout} s: {counts(found[1])}")
            time.sleep(poll_s)
        return found[0]

    def cancel(self) -> list[str]:
        """Stop all of it for good: nothing new starts, what runs saves and stops.

        Returns the points whose run was asked to stop.

        Raises:
            UserError: it has ended already.
            ClusterError: the scheduler, or the host of a run, cannot be asked from here.
        """
        state, _ = self.status()
        if state.ended:
            raise UserError(f"{self.name} has ended already: {state}")
        files = self._files
        write_json_atomically(files.cancel_request, {"by": getpass.getuser(), "at": time.time()})
        # Only now: whoever conducts it may just have started one more.
        _, states = self.status()
        stopped = []
        # The last first: a job that waits for another one must not start meanwhile.
        for one in reversed(states):
            if one.alive and one.folder is not None and _cancelled(Run(one.folder)):
                stopped.append(one.point.id)
        return stopped

    def resume(self, screen: Screen | None = None, *, stay: bool = False) -> Sweep:
        """Run what is missing, failed or was cancelled; what has finished is not run again.

        Raises:
            UserError: it has finished, or somebody conducts it now.
        """
        state, _ = self.status()
        if state is SweepState.FINISHED:
            raise UserError(f"{self.name} has finished; `sweep report` shows what it measured")
        self._conduct(screen or Quiet(), stay=stay)
        return self

    @property
    def shown(self) -> str:
        """What finds the sweep again from the working directory."""
        in_default = self.folder.parent == Path("runs").resolve()
        return self.name if in_default else str(self.folder)

    def _conduct(self, screen: Screen, *, stay: bool) -> None:
        files = self._files
        if files.cancel_request.exists():
            # Whoever conducted it ends soon, and must find the request until then.
            while conducted(files):
                screen.doing("waits until the cancelled sweep has ended")
                time.sleep(WAIT_POLL_S["local"])
            files.cancel_request.unlink(missing_ok=True)
        if not stay and self.cluster == "local":
            start_in_background(files)
            return
        try:
            conduct(files, screen)
        except KeyboardInterrupt:
            if self.cluster == "local":
                screen.say("interrupted: saves and stops")
                self.cancel()
            screen.say(self._go_on())
            raise
        except SubmitrainError:
            if self.runs() and not conducted(files):
                screen.say(self._go_on())
            raise

    def _go_on(self) -> str:
        return f"go on with: python -m launcher sweep resume {self.shown}"


def _cancelled(run: Run) -> bool:
    """Ask a run to stop; False when it has ended meanwhile."""
    try:
        run.cancel()
    except UserError:
        if not run.status().state.ended:
            raise
        return False
    return True
