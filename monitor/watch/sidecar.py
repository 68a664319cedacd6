"""The sidecar: a watcher process that starts with a run and ends with it.

Started by the supervisor, or by a job of its own through ``watch_run``. It outlives what
the supervisor outlives (a terminal that closes, the TERM of a preemption), and the supervisor: of a
local run it is the one who tells that the supervisor was killed.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from submitrain.errors import SubmitrainError, UserError
from submitrain.monitor.report.page import report_page
from submitrain.monitor.report.read import REPORT_NAME, read_report
from submitrain.monitor.watch.observe import stamps
from submitrain.monitor.watch.poll import PollResult, RunPoller
from submitrain.monitor.watch.watch import Printer, Watcher, warn
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, write_text_atomically

CHECK_EVERY_S = 0.5
"""Between two checks whether the run has ended, or its supervisor is gone."""
ORPHAN_S = 60.0
"""How long an orphan in a Slurm job waits for what Slurm makes of the job: it may come back, and
with it another watcher."""


@dataclass
class Sidecar:
    """One run and whom the watcher belongs to; ``owner`` None: to nobody, it ends with the run."""

    folder: Path
    owner: Callable[[], bool] | None = None
    """Whether the supervisor still lives."""
    orphan_s: float = ORPHAN_S
    clock: Callable[[], float] = time.monotonic
    _orphan_since: float | None = field(default=None, init=False)

    def leaves(self, results: Sequence[PollResult]) -> bool:
        """Whether there is nothing left to watch here."""
        if not self.folder.is_dir():
            return True
        if self.owner is None or self.owner() or any(result.ended for result in results):
            self._orphan_since = None
            return False
        if self._orphan_since is None:
            self._orphan_since = self.clock()
        return self.clock() - self._orphan_since >= self.orphan_s

    def sleep(self, seconds: float) -> None:
        """Sleep, less when something begins or ends."""
        until = self.clock() + seconds
        before = stamps(self.folder), self._orphaned()
        while (left := until - self.clock()) > 0:
            time.sleep(min(left, CHECK_EVERY_S))
            if (stamps(self.folder), self._orphaned()) != before:
                return

    def _orphaned(self) -> bool:
        return self.owner is not None and not self.owner()


def watch_run(folder: Path, sidecar: Sidecar | None = None) -> None:
    """Watch one run until it has ended and everything is told, whatever happens to its job."""
    sidecar = sidecar or Sidecar(folder)
    poller = RunPoller(end_at_once=True)
    watcher = Watcher(
        find=lambda: [folder],
        poller=poller,
        show=Printer(json=False, steps=False),
        warn=warn,
        sleep=sidecar.sleep,
        leaves=sidecar.leaves,
    )
    watcher.run(interval_s=poller.settings_of(folder).limits.interval_s, until_closed=True)
    report = RunDir(folder).reports / REPORT_NAME
    if not report.exists():
        return  # the supervisor is about to write it, or has gone without
    try:
        # Once more, for now it tells of the last alerts, too.
        write_text_atomically(report, report_page(read_report(folder)))
    except (SubmitrainError, OSError) as error:
        warn(f"{report} was not renewed: {error}")


def main(arguments: Sequence[str]) -> int:
    """The process that a supervisor starts; its output is ``monitor/watcher.log``."""
    folder, pid, cluster = Path(arguments[0]), int(arguments[1]), arguments[2]
    # Slurm sends TERM to everything in the job, and the end has still to be told: whoever starts
    # this process has it ignored from the first moment on.
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    supervisor = ProcessRef.of(pid)
    alive = lambda: supervisor is not None and bool(supervisor.alive())  # noqa: E731
    # Nobody brings a local run back: its watcher stays until its end is told.
    sidecar = Sidecar(folder, alive if cluster == "slurm" else None)
    try:
        watch_run(folder, sidecar)
    except UserError as error:
        warn(str(error))
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
