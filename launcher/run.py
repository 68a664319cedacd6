"""The handle of one run: made from its folder alone, in this process or in any other one."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from submitrain.errors import RunError, UserError
from submitrain.events import curve
from submitrain.launcher.submit.audit_events import client_act
from submitrain.launcher.submit.dependency import cancel_job, end_successors, terminate_job
from submitrain.launcher.submit.record import user_name
from submitrain.launcher.summary import RunResult, read_result
from submitrain.monitor.accounting.goodput import Goodput, read_goodput
from submitrain.monitor.audit.chain import Act
from submitrain.run_facts import read_evidence
from submitrain.run_folder import RunDir, find_run, write_json_atomically
from submitrain.status import RunState, RunStatus, job_views, read_statuses, status_of

if TYPE_CHECKING:
    import pandas

    from submitrain.launcher.notebook.chart import Plot


_FIRST = (
    *("step", "epoch", "loss", "grad_norm", "lr", "tokens", "tokens_per_s", "step_s"),
    *("data_wait_s", "mem_bytes", "mfu", "total_tokens", "label_tokens", "position", "attempt"),
)
_ENVELOPE = frozenset({"v", "kind", "rank", "job_id", "loss_hex", "grad_norm_hex"})
"""What every line carries, and exact values: in the list, not in the table."""


class StepEvents(list[dict[str, Any]]):
    """Step events in order of step: a list as any other; ``frame()`` makes a table of it."""

    def frame(self) -> pandas.DataFrame:
        """A pandas DataFrame indexed by step; ``time`` is UTC, "nan" and "inf" are numbers.

        Raises:
            UserError: pandas is not installed.
        """
        if find_spec("pandas") is None:
            raise UserError(
                "metrics: frame() needs pandas, which is not installed: pip install pandas, or "
                "take the list itself, one mapping for every step"
            )
        import pandas

        found = dict.fromkeys(key for event in self for key in event if key not in _ENVELOPE)
        usual = [name for name in _FIRST if name in found]
        rows = [  # JSON has no NaN: its name becomes the number again
            {k: float(v) if v in ("nan", "inf", "-inf") else v for k, v in event.items()}
            for event in self
        ]
        columns = [*usual, *(name for name in found if name not in _FIRST)]
        frame = pandas.DataFrame(rows, columns=columns)
        if "t" in frame:
            frame.insert(0, "time", pandas.to_datetime(frame.pop("t"), unit="s", utc=True))
        return frame.set_index("step") if "step" in frame else frame

    def _repr_html_(self) -> str | None:
        """The table, in notebooks; None (a plain list) where pandas is not installed."""
        if not self or find_spec("pandas") is None:
            return None
        shown: str | None = self.frame()._repr_html_()
        return shown


WAIT_POLL_S = {"local": 0.5, "slurm": 10.0}
"""Seconds between polls: a file system is asked more often than a shared scheduler."""
_FOLDER_POLL_S = 0.5


@dataclass(frozen=True)
class Run:
    """One run. All knowledge is read anew from the run folder and the scheduler when asked for."""

    folder: Path

    @classmethod
    def open(cls, name: str | Path, *, runs_dir: str | Path = "runs") -> Run:
        """The run of that folder, name, unique beginning of a name, or the ``latest`` one.

        Raises:
            UserError: there is none, or more than one.
        """
        return cls(find_run(str(name), Path(runs_dir).expanduser()))

    @property
    def run_id(self) -> str:
        """The folder's name, unique among runs."""
        return self.folder.name

    @property
    def run_dir(self) -> RunDir:
        """Paths inside the folder."""
        return RunDir(self.folder)

    def __repr__(self) -> str:
        status = self.status()
        steps = f"{status.step}/{status.total_steps}" if status.total_steps else f"{status.step}"
        why = f" ({status.why})" if status.why else ""
        return f"Run {self.run_id}: {status.state}{why}, step {steps}, {status.cluster}"

    def ended_at(self) -> int | None:
        """When its end was written down (ns); asks no scheduler. A resume changes that."""
        try:
            return self.run_dir.summary.stat().st_mtime_ns
        except OSError:
            return None

    def status(self) -> RunStatus:
        """How it is doing now; asks the scheduler once."""
        return read_statuses([self.folder])[0]

    def goodput(self) -> Goodput:
        """What its allocations were spent on; asks sacct for their exact times where it answers."""
        status = self.status()
        pending = status.state is RunState.QUEUED
        return read_goodput(self.folder, ended=status.state.ended, pending=pending)

    def wait(self, timeout: float | None = None) -> RunStatus:
        """Wait until it has ended, through restarts and requeues; returns its last status.

        Raises:
            TimeoutError: it has not ended within ``timeout`` seconds; the run goes on.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            ended_at = self.ended_at()
            status = self.status()
            if status.state.ended:
                return status
            poll_s = WAIT_POLL_S.get(status.cluster, 1.0)
            if deadline is not None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise TimeoutError(f"{self.run_id} is {status.state} after {timeout} s")
                poll_s = min(poll_s, left)
            poll_at = time.monotonic() + poll_s
            while self.ended_at() == ended_at and (left := poll_at - time.monotonic()) > 0:
                time.sleep(min(_FOLDER_POLL_S, left))

    def result(self, timeout: float | None = None) -> RunResult:
        """Wait for it and return what it achieved.

        Raises:
            RunError: it did not finish; the message says why and where the logs are.
            TimeoutError: it has not ended within ``timeout`` seconds.
        """
        status = self.wait(timeout)
        if status.state is not RunState.FINISHED:
            logs = self.run_dir.root / "logs"
            raise RunError(f"{self.run_id} {status.state}: {status.why}; logs: {logs}")
        return read_result(self.folder, status)

    def metrics(self) -> StepEvents:
        """Step events in order of step; of a step computed twice, the later one.

        A list; ``metrics().frame()`` is a pandas DataFrame, and notebooks show the list as one.
        """
        steps = curve(self.run_dir.events(0))
        return StepEvents(steps[step] for step in sorted(steps))

    def plot(self, name: str = "loss", *others: Run) -> Plot:
        """A chart of ``loss``, ``lr``, ``tokens_per_s``, ``mem_bytes`` or ``grad_norm`` by step.

        Other runs are drawn as broad pale bands beneath: an identical curve lies on its band.

        Raises:
            UserError: there is no such field, or no step has been recorded yet.
        """
        from submitrain.launcher.notebook.chart import plot

        return plot(self.folder, [other.folder for other in others], name)

    def watch(self, interval_s: float | None = None) -> None:
        """Follow it in one display until it has ended, anew every ``interval_s`` seconds.

        Interrupting ends the watching, never the run; default: once a second. The scheduler is
        asked every 15 s at most.
        """
        from submitrain.launcher.notebook.card import watch

        watch(self, interval_s)

    def _repr_html_(self) -> str:
        from submitrain.launcher.notebook.card import card_of

        return card_of(self)

    def logs(self, *, rank: int = 0, attempt: int | None = None, tail: int | None = None) -> str:
        """Output and errors of one rank in one attempt (default: the newest), last ``tail`` lines.

        Raises:
            UserError: there is no such log; the message says which there are.
        """
        texts = [path.read_text(errors="replace") for path in self.log_files(rank, attempt)]
        lines = "".join(texts).splitlines(keepends=True)
        return "".join(lines[-tail:] if tail else lines)

    def tail(self, lines: int = 20, *, rank: int = 0, attempt: int | None = None) -> None:
        """Print the last lines of a rank's log; raises like ``logs``."""
        sys.stdout.write(self.logs(rank=rank, attempt=attempt, tail=lines))

    def log_files(self, rank: int = 0, attempt: int | None = None) -> list[Path]:
        """The files that ``logs`` reads; those of the job itself before the first attempt."""
        run_dir = self.run_dir
        newest = run_dir.newest_attempt()
        if attempt is None and newest == 0:
            return sorted(run_dir.submitit.glob("*_log.*"))
        number = newest if attempt is None else attempt
        paths = [run_dir.log(number, rank, stream) for stream in ("out", "err")]
        found = [path for path in paths if path.exists()]
        if not found:
            names = sorted(path.name for path in run_dir.logs(number).glob("rank*"))
            raise UserError(
                f"logs: expected an attempt up to {newest} and one of its ranks, got attempt "
                f"{number}, rank {rank}; there are "
                f"{', '.join(names[:6]) or 'no logs of that attempt'}"
            )
        return found

    def cancel(self) -> RunStatus:
        """Ask it to save and stop for good; nobody brings it back but ``resume``.

        Raises:
            UserError: it has ended already.
            ClusterError: the scheduler, or the run's host, cannot be asked from here.
        """
        submission = self._living_submission()
        # First the request, then the signal: the supervisor must find it when the job ends.
        request = {"by": user_name(), "at": time.time()}
        with client_act(self.run_dir, Act.CANCEL, str(submission.get("job_id", ""))):
            write_json_atomically(self.run_dir.cancel_request, request)
            cancel_job(submission)
        end_successors(self.run_dir, "cancelled by the user")
        return self.status()

    def terminate(self) -> RunStatus:
        """Ask it to save and stop, as a shutdown of the machine would; raises like ``cancel``."""
        submission = self._living_submission()
        with client_act(self.run_dir, Act.TERMINATE, str(submission.get("job_id", ""))):
            terminate_job(submission)
        return self.status()

    def _living_submission(self) -> dict[str, Any]:
        evidence = read_evidence(self.folder)
        status = status_of(evidence, job_views([evidence])[self.run_id])
        if evidence.submission is None or status.state.ended:
            raise UserError(
                f"{self.run_id} has ended already: {status.state} {status.why}".rstrip()
            )
        return evidence.submission

    def resume(self, *, force: bool = False, **slurm: Any) -> Run:
        """Submit it again on the same folder: it goes on from its newest verified checkpoint.

        Configuration, code and cluster are those of the launch. Only keys of the ``slurm`` section
        may change (``nodes=4``, ``time="2h"``); the global batch size stays what it was.

        Args:
            force: submit even if the job cannot be scheduled.

        Raises:
            UserError: it still runs, may still run, or has finished; or Slurm would never start it.
        """
        from submitrain.launcher.submit.resume import resume

        resume(self, slurm, force=force)
        return self
