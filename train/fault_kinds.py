"""What each kind of fault does to the process that it strikes. Real faults, no imitations."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from train.checkpoint.manifest import MANIFEST, list_checkpoints
from train.faults import Fault, FaultKind
from train.rundir import RunDir


def possible(kind: FaultKind, run_dir: RunDir) -> bool:
    """Whether there is what this fault needs: a checkpoint to damage, a loader process to kill."""
    if kind is FaultKind.CORRUPT:
        return bool(list_checkpoints(run_dir.checkpoints))
    if kind is FaultKind.WORKER_KILL:
        return bool(multiprocessing.active_children())
    return True


def act(fault: Fault, run_dir: RunDir) -> None:
    """Do it; returns only from ``term``, ``nan``, ``slow``, ``worker_kill`` and an ended stop.

    Raises:
        RuntimeError: that is the fault.
        MemoryError: that is the fault.
    """
    if fault.kind is FaultKind.CORRUPT:
        flip_bit(newest_file(run_dir))
        _signal(signal.SIGKILL)
    elif fault.kind is FaultKind.NAN:
        return
    else:
        _ACTIONS[fault.kind](fault)


def newest_file(run_dir: RunDir) -> Path:
    """The largest file of the newest published checkpoint: weights or optimizer state."""
    newest = list_checkpoints(run_dir.checkpoints)[-1]
    files = [path for path in newest.rglob("*") if path.is_file() and path.name != MANIFEST]
    return max(files, key=lambda path: (path.stat().st_size, path.name))


def flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file, size and times aside as a bad disk would."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def _signal(number: signal.Signals) -> None:
    os.kill(os.getpid(), number)


def _segv(_fault: Fault) -> None:
    _no_core_dump()
    ctypes.string_at(0)


def _abort(_fault: Fault) -> None:
    _no_core_dump()
    os.abort()


def _no_core_dump() -> None:
    """Nobody wants the memory of a GPU process on a shared disk for a crash on purpose."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _hang(_fault: Fault) -> NoReturn:
    while True:
        time.sleep(3600)


def _hang_holding_the_lock(_fault: Fault) -> None:
    """Lock a zeroed (default) mutex twice: futex(2) goes on waiting after any signal handler.

    PyDLL calls do not release the interpreter lock.
    """
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)


def _exception(fault: Fault) -> NoReturn:
    raise RuntimeError(fault.message)


def _memory(fault: Fault) -> NoReturn:
    raise MemoryError(fault.message)


def _device_memory(fault: Fault) -> NoReturn:
    torch = sys.modules.get("torch")
    if torch is None:
        raise MemoryError(fault.message)
    raise torch.OutOfMemoryError(f"CUDA out of memory: {fault.message}")


def _kill_worker(_fault: Fault) -> None:
    pid = multiprocessing.active_children()[0].pid
    assert pid is not None
    os.kill(pid, signal.SIGKILL)


_ACTIONS: dict[FaultKind, Callable[[Fault], object]] = {
    FaultKind.KILL: lambda _: _signal(signal.SIGKILL),
    FaultKind.TERM: lambda _: _signal(signal.SIGTERM),
    FaultKind.SEGV: _segv,
    FaultKind.ABORT: _abort,
    FaultKind.EXIT0: lambda _: os._exit(0),
    FaultKind.EXCEPTION: _exception,
    FaultKind.STOP: lambda _: _signal(signal.SIGSTOP),
    FaultKind.HANG: _hang,
    FaultKind.HANG_GIL: _hang_holding_the_lock,
    FaultKind.MEMORY: _memory,
    FaultKind.DEVICE_MEMORY: _device_memory,
    FaultKind.SLOW: lambda fault: time.sleep(fault.seconds),
    FaultKind.WORKER_KILL: _kill_worker,
}
