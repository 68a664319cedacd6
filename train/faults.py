"""Faults on purpose, inside ranks: what a drill or a test plans in ``faults.json`` of a run folder.

A fault names a moment (a place in the training code), a rank, a step and what shall happen there.
It fires once per run: whoever makes the folder ``faults/<id>`` may fire it, so that a restarted
rank does not do it again, and ``fired.json`` in there tells when and where it was. The faults are
real, no imitations.

Without the file this costs one check when a rank starts, and nothing later. Imports no torch.
"""

from __future__ import annotations

import ctypes
import json
import multiprocessing
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError, model_validator

from submitrain.config.types import Section
from submitrain.errors import ConfigError
from submitrain.run_folder import RunDir, write_json_atomically
from submitrain.train.checkpoint.manifest import MANIFEST, list_checkpoints
from submitrain.train.context import RankContext


class Moment(StrEnum):
    """Where in a rank a fault may fire; which ``step`` that is."""

    START = "start"
    """After the rank has announced itself, before torch is imported; no step is known."""
    RENDEZVOUS = "rendezvous"
    """Before the rank meets the others; no step is known."""
    BUILD = "build"
    """Before the model is built; no step is known."""
    FIRST_STEP = "first_step"
    """Before the first batch of an attempt is read; the step that comes."""
    STEP = "step"
    """Between forward and backward of a micro-batch; the step being computed."""
    ACCUMULATION = "accumulation"
    """Between two micro-batches of a step; the step being computed."""
    OPTIMIZER = "optimizer"
    """Before the optimizer's update; the step being computed."""
    EPOCH_END = "epoch_end"
    """After the step that consumed the last sample of an epoch; that step."""
    SAVE = "save"
    """Between model and optimizer files of a checkpoint, in the saving thread; its step."""
    PUBLISH = "publish"
    """Rank 0: the checkpoint has its manifest and is not renamed into place yet; its step."""
    LATEST = "latest"
    """Rank 0: it is renamed, and ``latest`` does not point to it yet; its step."""
    VALIDATE = "validate"
    """At the beginning of a validation; the step that is validated."""
    EXPORT = "export"
    """Before the trained model is exported; the last step."""
    EXIT = "exit"
    """After the rank recorded its finish; the last step."""


class FaultKind(StrEnum):
    """What happens."""

    KILL = "kill"
    """SIGKILL to itself."""
    TERM = "term"
    """SIGTERM to itself."""
    SEGV = "segv"
    """A read from address 0."""
    ABORT = "abort"
    """abort(3)."""
    EXIT0 = "exit0"
    """It leaves with exit code 0 and without a word."""
    EXCEPTION = "exception"
    """A RuntimeError with ``message``."""
    STOP = "stop"
    """SIGSTOP to itself: the whole process stands still, heartbeat included."""
    HANG = "hang"
    """This thread sleeps for ever; the heartbeat goes on."""
    HANG_GIL = "hang_gil"
    """This thread waits in C for ever and holds the interpreter lock: no heartbeat, no handlers."""
    NAN = "nan"
    """Loss and gradient of this micro-batch are not numbers (moment ``step`` only)."""
    MEMORY = "memory"
    """A MemoryError."""
    DEVICE_MEMORY = "device_memory"
    """torch's OutOfMemoryError; a MemoryError before torch is imported."""
    SLOW = "slow"
    """It sleeps for ``seconds`` and goes on."""
    CORRUPT = "corrupt"
    """A bit of the newest published checkpoint flips, then SIGKILL; waits until there is one."""
    WORKER_KILL = "worker_kill"
    """SIGKILL to one of its data loader processes; waits until it has one."""


ONLY_RANK_0 = frozenset({Moment.PUBLISH, Moment.LATEST})
IN_A_STEP = frozenset({Moment.FIRST_STEP, Moment.STEP, Moment.ACCUMULATION, Moment.OPTIMIZER})
"""Moments of the step that is being computed; elsewhere the last finished one counts."""
NO_STEP = frozenset({Moment.START, Moment.RENDEZVOUS, Moment.BUILD})


class Fault(Section):
    """One planned fault."""

    id: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$", description="Unique in the run.")
    moment: Moment = Field(description="Where in the rank.")
    kind: FaultKind = Field(description="What happens.")
    rank: int | None = Field(0, ge=0, description="Which rank; none = the first that gets there.")
    step: int | None = Field(
        None, ge=1, description="Not before this optimizer step (counted from 1); none = at once."
    )
    micro_batch: int | None = Field(
        None, ge=0, description="Micro-batch of the step, counted from 0; none = the first one."
    )
    attempt: int | None = Field(None, ge=1, description="Only in this attempt; none = in any.")
    times: int = Field(1, ge=1, description="How often in the whole run.")
    seconds: float = Field(5.0, ge=0, description="Length of a `slow` fault.")
    message: str = Field("injected fault", description="Text of an exception.")

    @model_validator(mode="after")
    def _possible(self) -> Fault:
        if self.kind is FaultKind.NAN and self.moment is not Moment.STEP:
            raise ValueError(f"moment: expected step for a nan fault, got {self.moment}")
        if self.moment in ONLY_RANK_0 and self.rank not in (0, None):
            raise ValueError(f"rank: only rank 0 gets to {self.moment}, got {self.rank}")
        if self.moment in NO_STEP and self.step is not None:
            raise ValueError(f"step: none is known at {self.moment}; leave it out")
        return self


@dataclass(frozen=True)
class Fired:
    """Where and when a fault struck; ``t`` is UTC seconds."""

    id: str
    kind: str
    moment: str
    t: float
    step: int
    attempt: int
    rank: int
    host: str
    pid: int


def write_faults(run_dir: RunDir, faults: Sequence[Fault]) -> None:
    """Plan ``faults`` for a run; they arm when its next ranks start."""
    plan = [fault.model_dump(mode="json", exclude_defaults=True) for fault in faults]
    write_json_atomically(run_dir.faults, plan)


def read_faults(run_dir: RunDir) -> list[Fault]:
    """The planned faults of a run; none without the file.

    Raises:
        ConfigError: the file is no list of faults.
    """
    try:
        text = run_dir.faults.read_text()
    except FileNotFoundError:
        return []
    try:
        faults = [Fault.model_validate(entry) for entry in json.loads(text)]
    except (ValidationError, ValueError, TypeError) as error:
        raise ConfigError(f"{run_dir.faults}: expected a list of faults: {error}") from error
    names = [fault.id for fault in faults]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ConfigError(f"{run_dir.faults}: ids must be unique, got {', '.join(twice)} again")
    return faults


def read_fired(run_dir: RunDir) -> list[Fired]:
    """The faults that have struck so far, in order of time."""
    found: list[Fired] = []
    for path in run_dir.fired.glob("*/fired.json"):
        with suppress(OSError, ValueError, TypeError):
            found.append(Fired(**json.loads(path.read_text())))
    return sorted(found, key=lambda one: one.t)


def plan_of(*faults: dict[str, Any]) -> list[Fault]:
    """Faults from plain values, numbered where they have no id."""
    return [
        Fault.model_validate({"id": f"fault-{number}", **values})
        for number, values in enumerate(faults, start=1)
    ]


_armed: tuple[RankContext, tuple[Fault, ...]] | None = None
"""The faults that may strike in this process."""


def arm(context: RankContext) -> None:
    """Read what is planned for this rank of this attempt; called once, when a rank starts.

    Raises:
        ConfigError: the file is no list of faults.
    """
    global _armed
    mine = tuple(
        fault
        for fault in read_faults(context.run_dir)
        if fault.rank in (None, context.rank) and fault.attempt in (None, context.attempt)
    )
    _armed = (context, mine) if mine else None


def at(moment: Moment, *, step: int | None = None, micro_batch: int = 0) -> bool:
    """Let the faults strike that are planned for this place; most of them do not return.

    ``step`` is needed only in the saving thread, which may be behind the step that the rank is at.
    True asks the caller to make its numbers not finite: this module knows no tensors.
    """
    if _armed is None:
        return False
    context, faults = _armed
    if step is None:
        step = context.step + (moment in IN_A_STEP)
    poison = False
    for fault in faults:
        due = fault.moment is moment and step >= (fault.step or 0)
        if due and fault.micro_batch in (None, micro_batch):
            poison = _strike(context, fault, step) or poison
    return poison


def _strike(context: RankContext, fault: Fault, step: int) -> bool:
    """Fire the fault if what it needs is there; whether the caller's numbers shall be poisoned."""
    if fault.kind is FaultKind.CORRUPT and not list_checkpoints(context.run_dir.checkpoints):
        return False
    if fault.kind is FaultKind.WORKER_KILL and not multiprocessing.active_children():
        return False
    folder = _claim(context.run_dir.fired, fault)
    if folder is None:
        return False
    fired = Fired(
        id=folder.name,
        kind=str(fault.kind),
        moment=str(fault.moment),
        t=round(time.time(), 6),
        step=step,
        attempt=context.attempt,
        rank=context.rank,
        host=os.environ.get("SLURMD_NODENAME") or socket.gethostname(),
        pid=os.getpid(),
    )
    write_json_atomically(folder / "fired.json", asdict(fired))
    _act(fault, context.run_dir)
    return fault.kind is FaultKind.NAN


def _claim(root: Path, fault: Fault) -> Path | None:
    """The folder that gives the right to fire once more, or None when that is used up."""
    root.mkdir(exist_ok=True)
    for number in range(1, fault.times + 1):
        folder = root / (fault.id if number == 1 else f"{fault.id}~{number}")
        try:
            folder.mkdir()
        except FileExistsError:
            continue
        return folder
    return None


_SIGNALS = {
    FaultKind.KILL: signal.SIGKILL,
    FaultKind.TERM: signal.SIGTERM,
    FaultKind.STOP: signal.SIGSTOP,
}


def _act(fault: Fault, run_dir: RunDir) -> None:
    """Do it; returns only from ``term``, ``nan``, ``slow``, ``worker_kill`` and an ended stop.

    Raises:
        RuntimeError: that is the fault.
        MemoryError: that is the fault.
    """
    match fault.kind:
        case FaultKind.KILL | FaultKind.TERM | FaultKind.STOP:
            os.kill(os.getpid(), _SIGNALS[fault.kind])
        case FaultKind.SEGV:
            _no_core_dump()
            ctypes.string_at(0)
        case FaultKind.ABORT:
            _no_core_dump()
            os.abort()
        case FaultKind.EXIT0:
            os._exit(0)
        case FaultKind.EXCEPTION:
            raise RuntimeError(fault.message)
        case FaultKind.HANG:
            while True:
                time.sleep(3600)
        case FaultKind.HANG_GIL:
            _hang_holding_the_lock()
        case FaultKind.NAN:
            pass
        case FaultKind.MEMORY:
            raise MemoryError(fault.message)
        case FaultKind.DEVICE_MEMORY:
            if (torch := sys.modules.get("torch")) is None:
                raise MemoryError(fault.message)
            raise torch.OutOfMemoryError(f"CUDA out of memory: {fault.message}")
        case FaultKind.SLOW:
            time.sleep(fault.seconds)
        case FaultKind.CORRUPT:
            _flip_bit(_newest_file(run_dir))
            os.kill(os.getpid(), signal.SIGKILL)
        case FaultKind.WORKER_KILL:
            pid = multiprocessing.active_children()[0].pid
            assert pid is not None
            os.kill(pid, signal.SIGKILL)


def _newest_file(run_dir: RunDir) -> Path:
    """The largest file of the newest published checkpoint: weights or optimizer state."""
    newest = list_checkpoints(run_dir.checkpoints)[-1]
    files = [path for path in newest.rglob("*") if path.is_file() and path.name != MANIFEST]
    return max(files, key=lambda path: (path.stat().st_size, path.name))


def _flip_bit(path: Path) -> None:
    """Flip one bit in the middle of a file, size and times aside as a bad disk would."""
    with path.open("r+b") as file:
        file.seek(path.stat().st_size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 1]))
        file.flush()
        os.fsync(file.fileno())


def _no_core_dump() -> None:
    """Nobody wants the memory of a GPU process on a shared disk for a crash on purpose."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _hang_holding_the_lock() -> None:
    """Lock a zeroed (default) mutex twice: futex(2) goes on waiting after any signal handler.

    PyDLL calls do not release the interpreter lock.
    """
    libc = ctypes.PyDLL(None)
    mutex = ctypes.create_string_buffer(128)
    libc.pthread_mutex_lock(mutex)
    libc.pthread_mutex_lock(mutex)
