"""A light rank program: counts steps, saves a number, stops when asked; fails on demand.

It keeps the ranks' contract (events, exit codes, agreed stop) without torch, so that the
supervisor can be tested with many attempts in little time. What it shall do is read from
``counting.json`` in the run folder:

    steps: how many; step_s: seconds of each; save_every: steps between saves
    first_step_s, validate_every, validate_s, save_s: slow parts of a healthy run
    fail: {kind, rank, step, attempts: [1]}; kinds: kill, exit, error, user, memory, vanish, hang,
          victim, freeze (SIGSTOP), lock (waits in C and holds the interpreter lock),
          gpu_memory (torch's exception), nan, disk (fills a small file system)
    busy_s: seconds that a rank computes in each step, by rank
"""

from __future__ import annotations

import ctypes
import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from submitrain.config import RunConfig
from submitrain.errors import DataError, NotFiniteError
from submitrain.events import EXIT_FINISHED, EXIT_STOPPED, Kind, Phase
from submitrain.run_folder import write_json_atomically
from submitrain.signals import StopReason
from submitrain.train.context import RankContext

POLL_S = 0.01
CLONE_NEWNS, MS_REC, MS_PRIVATE = 0x20000, 1 << 14, 1 << 18
"""unshare(2), mount(2)."""


def main(context: RankContext, config: RunConfig) -> int:
    """Count from the saved step to the last one; returns 0 finished, 85 stopped."""
    plan = json.loads((context.run_dir.root / "counting.json").read_text())
    saved = context.run_dir.root / "saved.json"
    context.step = json.loads(saved.read_text())["step"] if saved.exists() else 0
    context.events.write(Kind.RESUME, step=context.step, path=str(saved), load_s=0.0)
    if "first_step_s" in plan:
        context.enter(Phase.FIRST_STEP)
        time.sleep(plan["first_step_s"])
    while context.step < plan["steps"]:
        context.enter(Phase.STEP)
        began = time.monotonic()
        misbehave(context, plan.get("fail"))
        compute(plan.get("busy_s", {}).get(str(context.rank), 0.0))
        time.sleep(plan["step_s"])
        context.mark()
        stop = agree(context, plan)
        context.step += 1
        if context.rank == 0:
            step_s = time.monotonic() - began
            context.events.write(Kind.STEP, step=context.step, loss=1.0, step_s=step_s)
        if context.step % plan.get("validate_every", 10**9) == 0:
            context.enter(Phase.VALIDATE)
            time.sleep(plan["validate_s"])
        if stop or context.step % plan.get("save_every", 10**9) == 0:
            save(context, plan)
        if stop:
            context.events.write(Kind.STOPPED, step=context.step, reason=stop)
            return EXIT_STOPPED
    save(context, plan)
    context.events.write(Kind.FINISH, step=context.step)
    return EXIT_FINISHED


def agree(context: RankContext, plan: dict[str, Any]) -> int:
    """All ranks meet at this step and learn the strongest reason to stop, by files."""
    folder = context.run_dir.attempt_dir(context.attempt) / "agree"
    folder.mkdir(exist_ok=True)
    mine = folder / f"{context.step}.{context.rank}"
    mine.with_suffix(f".{context.rank}.tmp").write_text(str(int(context.stop.reason)))
    mine.with_suffix(f".{context.rank}.tmp").rename(mine)
    deadline = time.monotonic() + plan.get("peer_timeout_s", 120)
    reasons = []
    for rank in range(context.world_size):
        path = folder / f"{context.step}.{rank}"
        while not path.exists():
            if time.monotonic() > deadline:
                raise RuntimeError("Connection closed by peer [127.0.0.1]:1")
            time.sleep(POLL_S)
        reasons.append(int(path.read_text()))
    return max([*reasons, int(StopReason.NONE)])


def save(context: RankContext, plan: dict[str, Any]) -> None:
    """Rank 0 writes the step; a fenced attempt must not."""
    context.enter(Phase.SAVE)
    if context.rank != 0:
        return
    time.sleep(plan.get("save_s", 0.0))
    if not context.fenced():
        write_json_atomically(context.run_dir.root / "saved.json", {"step": context.step})
        context.events.write(Kind.CHECKPOINT, step=context.step, path="saved.json", save_s=0.05)


def misbehave(context: RankContext, fail: dict[str, Any] | None) -> None:
    """Fail as the plan says."""
    if fail is None or context.rank != fail["rank"] or context.step != fail["step"]:
        return
    if context.attempt not in fail.get("attempts", [1]):
        return
    match fail["kind"]:
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "segv":
            os.kill(os.getpid(), signal.SIGSEGV)
        case "exit":
            os._exit(3)
        case "vanish":
            os._exit(0)
        case "error":
            raise ValueError("the fault is in this line")
        case "user":
            raise DataError("dataset.dataset_name: no such file")
        case "memory":
            raise MemoryError("out of memory")
        case "victim":
            raise RuntimeError("Connection reset by peer [10.0.0.2]:4711")
        case "hang":
            time.sleep(3600)
        case "freeze":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "lock":
            hold_the_interpreter_lock()
        case "gpu_memory":
            raise OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        case "nan":
            context.events.write(Kind.STEP, step=context.step + 1, loss="nan")
            raise NotFiniteError(f"the loss is nan at step {context.step + 1}")
        case "disk":
            fill_a_small_disk(context.run_dir.root / "small")


class OutOfMemoryError(RuntimeError):
    """Named and worded like ``torch.OutOfMemoryError``, which is a RuntimeError as well."""


def compute(busy_s: float) -> None:
    """Keep a core busy for so many seconds of its time."""
    until = time.thread_time() + busy_s
    while time.thread_time() < until:
        pass


def fill_a_small_disk(folder: Path) -> None:
    """Write until the kernel says ENOSPC, on a tmpfs that nobody but this process sees."""
    folder.mkdir(exist_ok=True)
    libc = ctypes.CDLL(None, use_errno=True)
    calls = (
        libc.unshare(CLONE_NEWNS),
        libc.mount(b"none", b"/", None, MS_REC | MS_PRIVATE, None),
        libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", 0, b"size=64k"),
    )
    assert calls == (0, 0, 0), os.strerror(ctypes.get_errno())
    with (folder / "shard.bin").open("wb", buffering=0) as file:
        while True:
            file.write(bytes(4096))


def hold_the_interpreter_lock() -> None:
    """Lock a mutex twice: a PyDLL call keeps the lock, and futex(2) goes on after any signal."""
    libc, mutex = ctypes.PyDLL(None), ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
