"""Starts the ranks of one attempt: as processes of this machine, or as a job step.

A ``Spawner`` starts a ``RankGroup``; the group says how its ranks end and passes signals on.
Nothing here decides what an end means.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from submitrain.imports import IMPORT_ROOT
from submitrain.launcher.supervisor.evidence import RankExit
from submitrain.run_folder import ATTEMPT_VARIABLE, RUN_DIR_VARIABLE, RunDir

JOB_ID_VARIABLE = "SUBMITRAIN_JOB_ID"
PARENT_VARIABLE = "SUBMITRAIN_PARENT_PID"
RANK_COMMAND = ("-m", "submitrain.launcher.worker.rank")

VICTIM_GRACE_S = 2.0
"""Seconds that the others get, after a first death, to write their own failure records."""
TERM_GRACE_S = 2.0
"""Seconds between TERM and KILL for ranks that cannot save any more since another one is dead."""
LAGGARD_GRACE_S = 120.0
"""Seconds that ranks get to leave once the first one left with "stopped"."""


class RankGroup(Protocol):
    """The running ranks of one attempt."""

    def poll(self) -> bool:
        """Reap what ended, end what must not go on; whether all ranks are gone."""

    def exits(self) -> tuple[RankExit, ...]:
        """How ranks ended so far, in the order in which it was seen."""

    def launcher_code(self) -> int | None:
        """Exit code of the program that launched the ranks; None if there is none."""

    def launcher_error(self) -> str:
        """What that program said last."""

    def request_stop(self, number: signal.Signals) -> None:
        """Signal every rank that can be reached directly; others see the stop request."""

    def dump_stacks(self) -> None:
        """Ask every living rank for the stacks of its threads (SIGUSR1)."""

    def kill(self) -> None:
        """End all ranks now."""

    def abandon(self) -> None:
        """End what belongs to this process, without asking a scheduler for anything."""


class Spawner(Protocol):
    """Starts the ranks of an attempt."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """Names of the nodes that ranks run on."""

    @property
    def world_size(self) -> int:
        """Number of ranks."""

    def start(self, attempt: int) -> RankGroup:
        """Start all ranks of ``attempt``, whose folders exist."""


def rank_environment(
    base: Mapping[str, str],
    run_dir: RunDir,
    *,
    attempt: int,
    job_id: str,
    extra: Mapping[str, str],
) -> dict[str, str]:
    """Environment of a rank: the supervisor's, ours, then the user's (``extra``).

    ``PYTHONSAFEPATH`` keeps a user's own ``train.py`` in the working directory from shadowing the
    package; the snapshot of the user's code comes first on ``PYTHONPATH``.
    """
    path = [str(run_dir.code), base.get("PYTHONPATH", "")]
    return {
        **base,
        "PYTHONSAFEPATH": "1",
        "PYTHONUNBUFFERED": "1",
        "PYTHONPATH": os.pathsep.join(entry for entry in path if entry),
        RUN_DIR_VARIABLE: str(run_dir.root),
        ATTEMPT_VARIABLE: str(attempt),
        JOB_ID_VARIABLE: job_id,
        **extra,
    }


def start_process(
    command: Sequence[str], environment: Mapping[str, str], out: Path, err: Path
) -> subprocess.Popen[bytes]:
    """Start a process in a group of its own; its output is appended to files."""
    with out.open("ab") as output, err.open("ab") as errors:
        return subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=errors,
            process_group=0,
        )


@dataclass(frozen=True)
class LocalSpawner:
    """``num_nodes x tasks_per_node`` processes on this machine: several nodes are simulated."""

    run_dir: RunDir
    job_id: str
    num_nodes: int
    tasks_per_node: int
    extra_env: Mapping[str, str] = field(default_factory=dict)
    command: tuple[str, ...] = (sys.executable, *RANK_COMMAND)
    logs: Path | None = None
    """Folder of the ranks' output; None: that of the attempt."""

    @property
    def nodes(self) -> tuple[str, ...]:
        """This machine; simulated nodes share its name."""
        return (socket.gethostname(),)

    @property
    def world_size(self) -> int:
        """Ranks over all simulated nodes."""
        return self.num_nodes * self.tasks_per_node

    def start(self, attempt: int) -> LocalGroup:
        """Start one process per rank, each in a process group of its own."""
        processes: dict[int, subprocess.Popen[bytes]] = {}
        logs = self.logs or self.run_dir.logs(attempt)
        try:
            for rank in range(self.world_size):
                out, err = (logs / f"rank{rank:05d}.{stream}" for stream in ("out", "err"))
                environment = self.environment(attempt, rank)
                processes[rank] = start_process(self.command, environment, out, err)
        except BaseException:
            LocalGroup(processes).kill()
            raise
        return LocalGroup(processes)

    def environment(self, attempt: int, rank: int) -> dict[str, str]:
        """Environment of one rank."""
        environment = rank_environment(
            os.environ, self.run_dir, attempt=attempt, job_id=self.job_id, extra=self.extra_env
        )
        threads = max(1, len(os.sched_getaffinity(0)) // self.world_size)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        return environment | {
            "SUBMITRAIN_RANK": str(rank),
            "SUBMITRAIN_WORLD_SIZE": str(self.world_size),
            "SUBMITRAIN_LOCAL_RANK": str(rank % self.tasks_per_node),
            "SUBMITRAIN_LOCAL_WORLD_SIZE": str(self.tasks_per_node),
            PARENT_VARIABLE: str(os.getpid()),
        }


class LocalGroup(RankGroup):
    """Local ranks: one death ends the others, after a short grace for their failure records."""

    def __init__(self, processes: Mapping[int, subprocess.Popen[bytes]]) -> None:
        self._processes = dict(processes)
        self._exits: list[RankExit] = []
        self._end_at: dict[signal.Signals, float] = {}
        self._ending = False

    def poll(self) -> bool:
        """Reap ended ranks; after a death end the rest; whether all are gone."""
        for rank in [rank for rank, one in self._processes.items() if one.poll() is not None]:
            self._reap(rank)
        now = time.monotonic()
        for number, at in list(self._end_at.items()):
            if now >= at:
                del self._end_at[number]
                self._ending = True
                self._signal_all(number)
        return not self._processes

    def exits(self) -> tuple[RankExit, ...]:
        return tuple(self._exits)

    def launcher_code(self) -> int | None:
        return None  # nobody launched them but this process

    def launcher_error(self) -> str:
        return ""

    def request_stop(self, number: signal.Signals) -> None:
        """Send ``number`` to every living rank; it only sets a flag there."""
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                process.send_signal(number)

    def dump_stacks(self) -> None:
        self.request_stop(signal.SIGUSR1)

    def kill(self) -> None:
        """Kill every rank with all of its children, and reap it."""
        self._ending = True
        self._signal_all(signal.SIGKILL)
        for rank, process in list(self._processes.items()):
            process.wait()
            self._reap(rank)

    def abandon(self) -> None:
        self.kill()  # local ranks are all this process's own

    def _reap(self, rank: int) -> None:
        process = self._processes.pop(rank)
        code = process.returncode
        # Loader workers and the like must not outlive their rank.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        ended = RankExit(rank, code, host=socket.gethostname(), ours=self._ending)
        self._exits.append(ended)
        now = time.monotonic()
        if ended.died and signal.SIGTERM not in self._end_at and not self._ending:
            self._end_at = {
                signal.SIGTERM: now + VICTIM_GRACE_S,
                signal.SIGKILL: now + VICTIM_GRACE_S + TERM_GRACE_S,
            }
        elif code and not self._end_at:
            self._end_at = {signal.SIGKILL: now + LAGGARD_GRACE_S}

    def _signal_all(self, number: signal.Signals) -> None:
        for process in self._processes.values():
            with suppress(ProcessLookupError):
                os.killpg(process.pid, number)


def package_root() -> Path | None:
    """Folder that holds our packages when they are not installed in site-packages, else None."""
    installed = IMPORT_ROOT.name in ("site-packages", "dist-packages")
    return None if installed else IMPORT_ROOT
