"""Linux processes that outlive their parent: identity, signals, and what belongs to a cluster.

A pid alone may be reused, so a process is a pid together with its start time (proc(5)).
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True)
class ProcessId:
    """One process: its pid and its start time in clock ticks since boot."""

    pid: int
    start_ticks: int


def identify(pid: int) -> ProcessId | None:
    """Return the process with this pid, or None if there is none (a zombie counts as none)."""
    try:
        fields = (PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    if fields[0] in "ZX":
        return None
    return ProcessId(pid, int(fields[19]))


def is_alive(process: ProcessId) -> bool:
    """Say whether this very process still runs (stopped counts as running)."""
    return identify(process.pid) == process


def is_paused(process: ProcessId) -> bool:
    """Say whether this process is stopped by a signal."""
    try:
        stat = (PROC / str(process.pid) / "stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] in "Tt"


def send_signal(process: ProcessId, number: int) -> None:
    """Send a signal to this very process; nothing happens when it is gone."""
    if is_alive(process):
        with suppress(ProcessLookupError):
            os.kill(process.pid, number)


def terminate(processes: Iterable[ProcessId], *, grace_s: float) -> list[ProcessId]:
    """End processes: SIGTERM, after the grace SIGKILL; return those that live on even then."""
    alive = list(processes)
    for number, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
        for process in alive:
            send_signal(process, number)
            # A stopped process does not see SIGTERM before it continues.
            send_signal(process, signal.SIGCONT)
        alive = _wait_gone(alive, patience_s)
    return alive


def _wait_gone(processes: list[ProcessId], patience_s: float) -> list[ProcessId]:
    deadline = time.monotonic() + patience_s
    while True:
        processes = [process for process in processes if is_alive(process)]
        if not processes or time.monotonic() > deadline:
            return processes
        time.sleep(0.02)


def hosts_file(pid: int) -> str:
    """Return the file that a process sees as /etc/hosts by a bind mount; empty if there is none.

    The path is as proc(5) gives it: from the root of its file system, with spaces escaped. It names
    the cluster for good, whereas the number of a namespace is given to the next one after its end.
    """
    try:
        lines = (PROC / str(pid) / "mountinfo").read_text().splitlines()
    except OSError:
        return ""
    mounts = [fields for fields in map(str.split, lines) if fields[4] == "/etc/hosts"]
    return mounts[-1][3].removesuffix("//deleted") if mounts else ""


def environment(pid: int) -> dict[str, str]:
    """Return the environment a process started with; empty if it cannot be read."""
    try:
        raw = (PROC / str(pid) / "environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition("=") for entry in raw.decode(errors="replace").split("\0"))
    return {name: value for name, _, value in pairs if name}


def processes_of(slurm_conf: Path, hosts: Mapping[str, str]) -> dict[ProcessId, str]:
    """Return every process a cluster has started, with the daemon it hangs on ("" if unknown).

    `hosts` maps the ends of the daemons' own hosts files to the daemons' names. A process belongs
    to the cluster if it sees such a file as /etc/hosts, or if Slurm started it (SLURM_JOB_ID or
    MARKER is set) with the cluster's SLURM_CONF. A shell in which somebody only exported SLURM_CONF
    does not count, and neither do this process and its ancestors.
    """
    found: dict[ProcessId, str] = {}
    spared = _ancestors(os.getpid())
    for pid in (int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit()):
        process = identify(pid)
        if process is None or pid in spared:
            continue
        seen = hosts_file(pid)
        daemon = next((name for end, name in hosts.items() if seen.endswith(end)), None)
        variables = environment(pid)
        ours = variables.get("SLURM_CONF") == str(slurm_conf)
        if daemon is not None:
            found[process] = daemon
        elif ours and (MARKER in variables or "SLURM_JOB_ID" in variables):
            found[process] = variables.get(MARKER) or variables.get("SLURMD_NODENAME", "")
    return found


MARKER = "SUBMITRAIN_TEST_DAEMON"
"""Environment variable that names the daemon; what the daemon starts inherits it."""


def _ancestors(pid: int) -> set[int]:
    """Return a pid and the pids of its ancestors."""
    result: set[int] = set()
    while pid > 0 and pid not in result:
        result.add(pid)
        try:
            pid = int((PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
    return result
