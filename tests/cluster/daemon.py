"""One daemon of a private cluster: started in the foreground, in its own session and namespaces."""

from __future__ import annotations

import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.process import (
    MARKER,
    ProcessId,
    identify,
    is_alive,
    is_paused,
    send_signal,
    terminate,
)


class SlurmClusterError(RuntimeError):
    """A private Slurm cluster could not do what was asked; the message quotes its logs."""


@dataclass(frozen=True)
class DaemonSpec:
    """How to start one daemon."""

    name: str
    """slurmctld, slurmdbd, mariadbd, munged, or the name of a node."""
    argv: tuple[str, ...]
    log: Path
    env: Mapping[str, str]
    """The whole environment."""
    hosts: Path | None = None
    """A file to see as /etc/hosts, in a mount namespace of its own; None: no namespaces."""
    hostname: str | None = None
    """The host name to see, in a UTS namespace of its own; needs `hosts`."""

    def command(self) -> list[str]:
        """Return the command, wrapped into namespaces where asked for; the pid stays the same."""
        if self.hosts is None:
            return list(self.argv)
        steps = [f"mount --bind {shlex.quote(str(self.hosts))} /etc/hosts"]
        if self.hostname is not None:
            steps.append(f"hostname {shlex.quote(self.hostname)}")
        flags = ["--mount", "--propagation=private", *(["--uts"] if self.hostname else [])]
        script = " && ".join([*steps, 'exec "$@"'])
        return ["unshare", *flags, "sh", "-c", script, self.name, *self.argv]


@dataclass
class Daemon:
    """A daemon that can be started, stopped, paused and killed; also by another process later."""

    spec: DaemonSpec
    process: ProcessId | None = None
    _child: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, unless it runs; raise SlurmClusterError if it ends at once."""
        if self.alive:
            return
        with self.spec.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.spec.command(),
                env={**self.spec.env, MARKER: self.spec.name},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.process = identify(self._child.pid)
        if self.process is None:
            raise SlurmClusterError(f"{self.spec.name} ended at once\n{self.log_tail()}")

    @property
    def alive(self) -> bool:
        """Whether it runs, or is paused."""
        if self._child is not None:
            self._child.poll()
        return self.process is not None and is_alive(self.process)

    @property
    def paused(self) -> bool:
        """Whether it is stopped by SIGSTOP."""
        return self.process is not None and self.alive and is_paused(self.process)

    def signal(self, number: int) -> None:
        """Send it a signal; raise SlurmClusterError when it does not run."""
        if self.process is None or not self.alive:
            raise SlurmClusterError(
                f"{self.spec.name} does not run, so it cannot get signal {number}"
            )
        send_signal(self.process, number)

    def stop(self, *, grace_s: float = 5.0) -> None:
        """End it with SIGTERM, after the grace with SIGKILL; nothing happens if it has ended."""
        if self.process is not None and self.alive:
            left = terminate([self.process], grace_s=grace_s)
            if left:
                raise SlurmClusterError(f"{self.spec.name} (pid {left[0].pid}) does not end")
        self.reap()

    def kill(self) -> None:
        """End it with SIGKILL, as a crash would."""
        self.signal(signal.SIGKILL)
        self.stop()

    def reap(self) -> None:
        """Collect the exit status, if this process is the parent and the daemon has ended."""
        if self._child is not None and not self.alive:
            self._child.wait()
            self._child = None

    def log_tail(self, lines: int = 12) -> str:
        """Return the last lines of its log, each indented, under the log's name."""
        try:
            text = self.spec.log.read_text(errors="replace").splitlines()[-lines:]
        except OSError:
            text = ["(no log)"]
        return "\n".join([f"--- {self.spec.log}", *(f"    {line}" for line in text)])
