"""The supervisor's side of ``monitor.autostart``: sees that every attempt has a watcher.

A watcher is a process of its own, since it has to survive the supervisor and must never hold it up.
Two of them do no harm: locks in the run folder make them share the work (``monitor.alerts.store``).
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from dataclasses import dataclass, field

import structlog

from launcher.watcher_plan import watched_by
from train.config import RunConfig
from train.rundir import RunDir

LOG_NAME = "watcher.log"
AGAIN_S = 5.0
"""Before a watcher that was killed is replaced."""
FAREWELL_S = 60.0
"""How long a job that ends waits for its watcher to tell of it: with the job, Slurm ends all of its
processes. After a cancel, Slurm's KillWait ends the wait earlier."""
DEAF = ("sh", "-c", 'trap "" HUP INT TERM; exec "$@"', "watcher")
"""Slurm sends TERM to everything in a job that ends, also to what has only just begun."""

log = structlog.get_logger(__name__)


@dataclass
class RunWatcher:
    """``kind``: off, beside or job."""

    run_dir: RunDir
    kind: str
    on_slurm: bool
    _keeper: threading.Thread | None = None
    _ending: threading.Event = field(default_factory=threading.Event)

    @classmethod
    def of(cls, run_dir: RunDir, config: RunConfig, *, on_slurm: bool) -> RunWatcher:
        """The watcher that the configuration asks for."""
        return cls(run_dir, watched_by(config, "slurm" if on_slurm else "local"), on_slurm)

    def stand(self, attempt: int) -> None:
        """Before an attempt: see that there is a watcher; one that cannot start stops nobody."""
        if self.kind == "off" or (self._keeper is not None and self._keeper.is_alive()):
            return
        if self.kind == "job" and attempt < 2:
            return  # the client has submitted it, or is about to
        work = self._keep if self.kind == "beside" else self._see_to_the_job
        self._keeper = threading.Thread(target=work, name="watcher", daemon=True)
        self._keeper.start()

    def farewell(self) -> None:
        """After the end of the run: wait until it is told, where the process ends with the job."""
        self._ending.set()
        if self._keeper is None or self.kind != "beside" or not self.on_slurm:
            return
        self._keeper.join(FAREWELL_S)
        if self._keeper.is_alive():
            next_step = f"python -m monitor watch {self.run_dir.root} --once"
            log.warning("alerts_not_delivered", waited_s=FAREWELL_S, next_step=next_step)

    def _keep(self) -> None:
        cluster = "slurm" if self.on_slurm else "local"
        arguments = [str(self.run_dir.root), str(os.getpid()), cluster]
        while (process := self._start("monitor.beside", *arguments)) is not None:
            if process.wait() >= 0:
                return
            log.warning("watcher_killed", signal=-process.returncode)
            self._ending.wait(AGAIN_S)

    def _see_to_the_job(self) -> None:
        process = self._start("launcher.watcher_job", str(self.run_dir.root))
        if process is not None:
            process.wait()

    def _start(self, module: str, *arguments: str) -> subprocess.Popen[bytes] | None:
        path = self.run_dir.monitor / LOG_NAME
        try:
            path.parent.mkdir(exist_ok=True)
            with path.open("ab") as words:
                return subprocess.Popen(
                    [*DEAF, sys.executable, "-m", module, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=words,
                    stderr=words,
                    start_new_session=True,
                )
        except OSError as error:
            log.warning("no_watcher", why=str(error))
            return None
