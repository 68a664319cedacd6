"""What Python and the command line do with a sweep: begin, open, wait, report, cancel, resume."""

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
from submitrain.launcher.sweeps.folder import (
    HTML_NAME,
    JSON_NAME,
    PointState,
    SweepFolder,
    SweepState,
    counts,
    find_sweep,
    make_sweep,
    point_states,
    sweep_state,
)
from submitrain.launcher.sweeps.plan import SweepPlan
from submitrain.launcher.sweeps.report import SweepReport, read_sweep
from submitrain.launcher.sweeps.request import Request, grid_of, parse_price
from submitrain.launcher.sweeps.scaling import Mode
from submitrain.launcher.sweeps.start import start_in_background, start_missing
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


@dataclass(frozen=True, repr=False)
class Sweep(SweepFolder):
    """One sweep, made from its folder alone. How it is doing is read anew when asked for."""

    @classmethod
    def open(cls, name: str | Path, *, runs_dir: str | Path = "runs") -> Sweep:
        """The sweep of that folder, name, unique beginning of a name, or the ``latest`` one.

        Raises:
            UserError: there is none, or more than one, or its record cannot be read.
        """
        sweep = cls(find_sweep(name, runs_dir))
        _ = sweep.record
        return sweep

    @classmethod
    def begin(cls, plan: SweepPlan, screen: Screen | None = None, *, stay: bool = False) -> Sweep:
        """Make its folder and start it; with ``stay`` this process runs the points of a local one.

        Raises:
            SubmitrainError: the folder cannot be written, or the cluster refuses a job. Where that
                was the first one nothing stays behind; else what was submitted before runs, and
                ``resume`` does the rest.
        """
        with folders_of(plan.first.runs_dir):
            sweep = cls(make_sweep(plan))
            try:
                sweep._start_missing(screen or Screen(None), stay=stay)
            except SubmitrainError:
                if not sweep.runs():
                    shutil.rmtree(sweep.folder, ignore_errors=True)
                raise
        return sweep

    @property
    def name(self) -> str:
        """The folder's name, unique among sweeps."""
        return self.folder.name

    def __repr__(self) -> str:
        state, points = self.status()
        return f"Sweep {self.name}: {state}, {counts(points)}"

    def _repr_html_(self) -> str:
        return self.report()._repr_html_()

    def status(self) -> tuple[SweepState, list[PointState]]:
        """How it is doing as a whole, and each point; asks the scheduler once."""
        states = point_states(self)
        return sweep_state(self, states), states

    def runs(self) -> dict[str, Run]:
        """The newest run of each point that was started."""
        return {name: Run(folders[-1]) for name, folders in self.run_folders().items()}

    def report(self) -> SweepReport:
        """What it has measured so far; shows itself in a notebook."""
        return read_sweep(self)

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

    def wait(self, timeout: float | None = None, screen: Screen | None = None) -> SweepState:
        """Wait until nothing of it runs any more; ``screen`` shows how far it is.

        Raises:
            TimeoutError: it still runs after ``timeout`` seconds.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        poll_s = WAIT_POLL_S.get(self.cluster, 1.0)
        while not (found := self.status())[0].ended:
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self.name} after {timeout} s: {counts(found[1])}")
            if screen is not None:
                screen.doing(counts(found[1]))
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
        write_json_atomically(self.cancel_request, {"by": getpass.getuser(), "at": time.time()})
        # Only now: whoever starts its points may just have started one more.
        _, states = self.status()
        stopped = []
        # The last first: a job that waits for another one must not start meanwhile.
        for one in reversed(states):
            if not one.alive or one.folder is None:
                continue
            run = Run(one.folder)
            try:
                run.cancel()
            except UserError:
                if not run.status().state.ended:
                    raise
            else:
                stopped.append(one.point.id)
        return stopped

    def resume(self, screen: Screen | None = None, *, stay: bool = False) -> Sweep:
        """Run what is missing, failed or was cancelled; what has finished is not run again.

        Raises:
            UserError: it has finished, or somebody starts its points now.
        """
        state, _ = self.status()
        if state is SweepState.FINISHED:
            raise UserError(f"{self.name} has finished; `sweep report` shows what it measured")
        self._start_missing(screen or Screen(None), stay=stay)
        return self

    @property
    def shown(self) -> str:
        """What finds the sweep again from the working directory."""
        in_default = self.folder.parent == Path("runs").resolve()
        return self.name if in_default else str(self.folder)

    def _start_missing(self, screen: Screen, *, stay: bool) -> None:
        if self.cancel_request.exists():
            # Whoever starts its points ends soon, and must find the request until then.
            while self.claimed:
                screen.doing("waits until the cancelled sweep has ended")
                time.sleep(WAIT_POLL_S["local"])
            self.cancel_request.unlink(missing_ok=True)
        if not stay and self.cluster == "local":
            start_in_background(self)
            return
        how = f"resume it with: python -m launcher sweep resume {self.shown}"
        try:
            start_missing(self, screen)
        except KeyboardInterrupt:
            if self.cluster == "local":
                screen.say("interrupted: saves and stops")
                self.cancel()
            screen.say(how)
            raise
        except SubmitrainError:
            if self.runs() and not self.claimed:
                screen.say(how)
            raise
