"""What a rank knows of itself, and its means to report: events, phase, stop flag. No torch."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from submitrain.events import EXIT_FENCED, EventWriter, Kind, Phase
from submitrain.fence import Fence
from submitrain.run_folder import RunDir
from submitrain.signals import StopFlag, StopReason


def busy_s() -> float:
    """Seconds that this process's threads computed, or waited for a core to compute on.

    It tells a slow rank from those that wait for it: all end a step at the same moment. Waiting for
    a peer, a disk or a GPU does not count, a core shared with strangers does (proc(5), schedstat:
    time on the CPU, time on a run queue). Where the kernel keeps no schedstat it is the CPU time.
    """
    total_ns = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError, ValueError, IndexError):  # a thread that has just ended
            fields = (task / "schedstat").read_text().split()
            total_ns += int(fields[0]) + int(fields[1])
    return total_ns * 1e-9 if total_ns else time.process_time()


STOP_POLL_S = 0.5
FENCE_POLL_S = 2.0
"""Seconds between checks for a newer attempt; a thawed process checks at once."""


@dataclass
class RankContext:
    """One rank of one attempt. ``step`` counts finished optimizer steps of the whole run."""

    run_dir: RunDir
    attempt: int
    job_id: str
    rank: int
    world_size: int
    local_rank: int
    local_world_size: int
    stop: StopFlag = field(default_factory=StopFlag)
    step: int = 0
    phase: Phase = Phase.IMPORT
    phase_since: float = field(default_factory=time.monotonic)
    progress: int = 0
    """Points of the program passed so far that every rank passes: who is behind keeps others."""
    save_progress: int = 0
    """The same, in the thread that saves."""
    pulses: int = 0
    """Signs of work that only this rank does."""
    idle_s: float = 0.0
    """Seconds without progress, as the heartbeat's thread saw it."""
    ckpt_interval_s: float | None = None
    """Seconds between saves, where that is automatic and known (rank 0)."""
    on_cpu: bool = True
    """Whether it computes on the CPU, so that its busy time says how long its steps take."""

    def __post_init__(self) -> None:
        self.events = EventWriter(
            self.run_dir.events(self.rank), self.rank, self.attempt, self.job_id, fenced=self.fenced
        )

    def mark(self) -> None:
        """Say that one more point was passed that all ranks pass; costs next to nothing."""
        self.progress += 1

    def mark_save(self) -> None:
        """The same, for a save: it may run in a thread of its own."""
        self.save_progress += 1

    def pulse(self) -> None:
        """Say that this rank works, where others wait for it."""
        self.pulses += 1

    def enter(self, phase: Phase) -> None:
        """Record that this rank is in another phase now."""
        if phase is self.phase:
            return
        self.phase, self.phase_since = phase, time.monotonic()
        self.mark()
        self.events.write(
            Kind.PHASE,
            phase=str(phase),
            step=self.step,
            progress=self.progress,
            save_progress=self.save_progress,
        )

    def beat(self) -> None:
        """Write one heartbeat: where this rank is, and for how long already."""
        age_s = round(time.monotonic() - self.phase_since, 3)
        self.events.write(
            Kind.HEARTBEAT,
            step=self.step,
            phase=str(self.phase),
            phase_age_s=age_s,
            progress=self.progress,
            save_progress=self.save_progress,
            idle_s=round(self.idle_s, 3),
            **({} if self.ckpt_interval_s is None else {"ckpt_interval_s": self.ckpt_interval_s}),
            **({"busy_s": round(busy_s(), 3)} if self.on_cpu else {}),
        )

    def fenced(self) -> bool:
        """Whether a newer attempt owns the run folder, so that this one must not publish."""
        return self.run_dir.newest_attempt() > self.attempt

    @property
    def fence(self) -> Fence:
        """What this attempt asks before it publishes, moves or deletes anything shared."""
        return Fence(self.attempt, self.fenced)


@contextmanager
def background_beat(
    context: RankContext, interval_s: float, poll: Callable[[float], None] = lambda now: None
) -> Iterator[None]:
    """Beat every ``interval_s`` seconds, poll for the stop request, pass warnings on; a thread.

    ``poll`` is called with the monotonic time twice a second, before anything else. The thread ends
    the process when a newer attempt owns the run folder.
    """
    done = threading.Event()

    def run() -> None:
        next_beat, next_fence, warnings_passed_on = 0.0, 0.0, 0
        while not done.wait(STOP_POLL_S):
            poll(time.monotonic())
            if time.monotonic() >= next_fence:
                leave_if_fenced(context)
                next_fence = time.monotonic() + FENCE_POLL_S
            if stop_requested(context.run_dir.stop_request(context.attempt)):
                context.stop.request(StopReason.ASKED)
            if context.stop.warnings > warnings_passed_on:
                warnings_passed_on = context.stop.warnings
                context.events.write(Kind.WARNED, step=context.step)
            if time.monotonic() >= next_beat:
                context.beat()
                next_beat = time.monotonic() + interval_s

    thread = threading.Thread(target=run, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def leave_if_fenced(context: RankContext) -> None:
    """End this process when a newer attempt owns the run folder; its own log says so."""
    with suppress(OSError):
        if context.fenced():
            newest = context.run_dir.newest_attempt()
            sys.stderr.write(
                f"rank {context.rank} of attempt {context.attempt} is fenced: attempt {newest} "
                "owns the run folder; leaving\n"
            )
            leave(EXIT_FENCED)


def stop_requested(path: Path) -> bool:
    """Whether the supervisor asked this attempt to stop; an unreadable folder is no request.

    Listing the folder instead of looking for the file makes NFS ask its server: a cached "no such
    file" may stay for a minute (nfs(5), acdirmax).
    """
    try:
        return any(entry.name == path.name for entry in path.parent.iterdir())
    except OSError:
        return False


def leave(code: int) -> None:
    """End this process now, without the interpreter's teardown; never returns.

    torch 2.13 with gloo aborts at exit now and then ("terminate called without an active
    exception"), which Slurm would count as a failed job. Everything worth keeping is on disk by
    now; only the standard streams are left to flush.
    """
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(code)
