"""Processes of local runs, found again later: a recycled pid is not mistaken for the old process.

Reads /proc only; imports nothing of the other packages.

The stop flag: signal handlers and the supervisor's request only set it. Imports no torch.

A warning (SIGUSR2 from Slurm) stops nothing by itself: Slurm sends it up to a minute early, and for
the time limit and a preemption alike. It is passed on to the supervisor, which knows the deadline.

Ranks read it at optimizer-step boundaries, agree on it by an all-reduce, save once and exit with
``EXIT_STOPPED``. Install the handlers before torch is imported: a signal during the import would
otherwise kill the rank.

Standard streams that lose lines on a full or read-only disk instead of ending the process.

The logs of ranks and supervisor are files of the run folder: with Python's own streams one line of
progress on a full disk is an OSError in the middle of a step. Imports nothing of this project.

Helper processes must outlive the signals that tell their rank to save.

Slurm sends the warning before the time limit to every process of a step; a loader process that
died of it would take its rank down in the middle of the save. So it does with SIGUSR1, which asks
ranks for their stacks: a helper would die of it, or write into its rank's dump.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import IntEnum
from pathlib import Path
from types import FrameType
from typing import Any, Self, TextIO

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
            return bool(self.alive()) and _signal_descriptor(descriptor, number)
        finally:
            os.close(descriptor)


def _signal_descriptor(descriptor: int, number: int) -> bool:
    # A pidfd stays with its process: no other one can slip in between the check and the signal.
    from signal import pidfd_send_signal

    try:
        pidfd_send_signal(descriptor, number)
    except ProcessLookupError:
        return False
    return True


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


class StopReason(IntEnum):
    """Why to stop; the highest one that any rank saw is what all ranks agree on."""

    NONE = 0
    ASKED = 1
    """The supervisor wrote a stop request: deadline near, restart on other nodes, ..."""
    TERMINATED = 2
    """SIGTERM: KILL follows within KillWait."""


class StopFlag:
    """Holds the strongest reason to stop that this rank has seen; never goes back."""

    def __init__(self) -> None:
        self._reason = StopReason.NONE
        self.warnings = 0

    @property
    def reason(self) -> StopReason:
        """Strongest reason so far; NONE means go on."""
        return self._reason

    def request(self, reason: StopReason) -> None:
        """Ask for a stop; safe in a signal handler and from any thread."""
        if reason > self._reason:
            self._reason = reason


def install_handlers(flag: StopFlag) -> None:
    """SIGTERM sets the flag, SIGUSR2 is counted; SIGINT belongs to the terminal, not to ranks."""

    def on_signal(number: int, _frame: FrameType | None) -> None:
        if number == signal.SIGUSR2:
            flag.warnings += 1
        else:
            flag.request(StopReason.TERMINATED)

    signal.signal(signal.SIGUSR2, on_signal)
    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class LossyStream:
    """A text stream whose writes never raise OSError; everything else is the stream's own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = 0
        """Writes that failed."""

    def write(self, text: str) -> int:
        """Write as far as the disk lets us; says that all of it was written."""
        try:
            self._stream.write(text)
        except OSError:
            self.lost += 1
        return len(text)

    def flush(self) -> None:
        """Flush as far as the disk lets us."""
        with suppress(OSError):
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def tolerate_log_write_errors() -> None:
    """Make this process's standard output and error lossy."""
    sys.stdout = LossyStream(sys.stdout)
    sys.stderr = LossyStream(sys.stderr)


STOP_SIGNALS = (signal.SIGTERM, signal.SIGUSR2, signal.SIGUSR1, signal.SIGINT)
_PR_SET_PDEATHSIG = 1


@contextmanager
def stop_signals_blocked() -> Iterator[None]:
    """Start processes inside: they begin with the stop signals blocked (signal masks survive fork
    and exec), so none is lost to the time before ``ignore_stop_signals``."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def ignore_stop_signals() -> None:
    """First thing in a helper process: only its parent's end ends it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)


def die_with_parent() -> None:
    """Have the kernel kill this process when its parent dies (prctl(2), PR_SET_PDEATHSIG).

    A forked process shares its parent's sockets: alive, it would hide from the other ranks for
    seconds that this rank is dead.
    """
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:
        os._exit(1)
