"""Processes of local runs, found again later: a recycled pid is not taken for the old process."""

from __future__ import annotations

import os
import signal
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

_PROC = Path("/proc")
_START_FIELD = 22
"""Field of /proc/<pid>/stat with the start time in clock ticks since boot (proc(5))."""


@dataclass(frozen=True)
class ProcessRef:
    """One process for good: its pid, and all that tells it from a later owner of that pid."""

    pid: int
    start_ticks: int
    host: str
    boot_id: str
    pid_namespace: str

    @classmethod
    def of(cls, pid: int) -> Self | None:
        """The process that has ``pid`` now, or None when there is none."""
        start_ticks = _start_ticks(pid)
        if start_ticks is None:
            return None
        return cls(pid, start_ticks, socket.gethostname(), boot_id(), _pid_namespace())

    @classmethod
    def from_json(cls, value: object) -> Self | None:
        """Read back what ``as_json`` wrote; None for anything else."""
        if not isinstance(value, dict):
            return None
        try:
            return cls(**{name: value[name] for name in cls.__dataclass_fields__})
        except KeyError:
            return None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a JSON file."""
        return asdict(self)

    def alive(self) -> bool | None:
        """Whether it still runs; None when that cannot be known from here (another host)."""
        if self.host != socket.gethostname():
            return None
        if self.boot_id != boot_id():
            return False
        if self.pid_namespace != _pid_namespace():
            return None
        return _start_ticks(self.pid) == self.start_ticks

    def send_signal(self, number: int) -> bool:
        """Signal it, and only it; returns whether it was there to receive the signal."""
        if not self.alive():
            return False
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            # A pidfd stays with its process: no other one can slip in between check and signal.
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
            return True
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)


def _start_ticks(pid: int) -> int | None:
    """Start time of a living process; None for none, and for one that is dead but not reaped."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The second field is the command in parentheses and may itself hold spaces and parentheses.
    fields = text.rpartition(")")[2].split()
    if fields[0] in {"Z", "X"}:
        return None
    return int(fields[_START_FIELD - 3])


def boot_id() -> str:
    """The running kernel: equal for all nodes that are one machine, containers included."""
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""


def _pid_namespace() -> str:
    try:
        return str((_PROC / "self/ns/pid").readlink())
    except OSError:
        return ""
