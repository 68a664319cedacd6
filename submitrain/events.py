"""Append-only event files: how ranks and supervisor tell everyone else what happened.

One JSON object per line, written with one ``write``; one writer per file. Readers skip a torn last
line, unknown kinds and unknown fields. A write error never stops training. Imports no torch.

Fencing: what an attempt may still write once a newer one owns the run folder: nothing.

An attempt is owned by whoever made its folder (mkdir is atomic). A process that was frozen, or sat
on a node that was thought lost, may go on between any two of its instructions, so a check alone
proves nothing about the next system call. Hence three rules:

- what is published is first complete under a name that carries the attempt, and a newer attempt
  takes that name away (``CheckpointFolders.revoke``) before it looks what there is: a rename that
  comes late fails;
- what is moved out of the way is moved back when the fence is found closed afterwards;
- readers skip a line of an older attempt that follows one of a newer attempt.

May import only ``submitrain.errors``.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from submitrain.errors import FencedError


def open_gate() -> bool:
    """For folders that no other attempt can own."""
    return False


@dataclass(frozen=True)
class Fence:
    """One attempt's own number, and whether a newer attempt has taken its place."""

    attempt: int = 0
    closed: Callable[[], bool] = open_gate

    def check(self, what: str) -> None:
        """Refuse to go on.

        Raises:
            FencedError: a newer attempt owns the run folder.
        """
        if self.closed():
            raise FencedError(
                f"attempt {self.attempt} may not {what}: a newer attempt owns the run folder; "
                "this one ends"
            )

    @contextmanager
    def moved_aside(self, path: Path, aside: Path) -> Iterator[None]:
        """Have ``path`` out of the way (if it is there); back again after an error or a fence.

        Raises:
            FencedError: a newer attempt owns the run folder; what was moved is back in place.
            OSError: it could not be moved.
        """
        self.check(f"move {path}")
        moved = True
        try:
            path.rename(aside)
        except FileNotFoundError:
            moved = False
        try:
            self.check(f"replace {path}")
            yield
        except BaseException:
            if moved:
                _put_back(aside, path)
            raise


def _put_back(aside: Path, path: Path) -> None:
    """Undo; rename(2) refuses where a newer attempt has put a whole folder there meanwhile."""
    with suppress(OSError):
        aside.rename(path)


Event = dict[str, Any]
VERSION = 1
EXIT_FINISHED = 0
EXIT_FAILED = 1
EXIT_STOPPED = 85
"""A rank exits with this after it saved and stopped because it was asked to."""
EXIT_HUNG = 86
"""A rank's watchdog ends it with this: it did not advance, and nobody else had ended it."""
EXIT_FENCED = 87
"""A rank or supervisor exits with this when a newer attempt owns the run folder."""


class Kind(StrEnum):
    """What a line of an event file is about; units are in the field names."""

    START = "start"
    """host, pid, world_size, local_rank, step_id, machine (boot id of its kernel: nodes that share
    it are one machine)"""
    SETUP = "setup"
    """device, threads, backend, parameters, attention, dtype, batch, total_steps, units_per_epoch,
    documents, fill_rate: what this rank is about to train, and with what"""
    PHASE = "phase"
    """phase, step, progress, save_progress: the rank entered another phase (see Phase)"""
    HEARTBEAT = "heartbeat"
    """step, phase, phase_age_s: the rank's Python runs; step and phase say whether it advances;
    progress, save_progress: points of the program passed, equal on all ranks where they wait for
    each other; idle_s: seconds without any progress; ckpt_interval_s: seconds between automatic
    saves (rank 0); busy_s (on CPUs): seconds that its threads have computed or waited for a core"""
    STEP = "step"
    """step, epoch, position, loss, grad_norm, lr, tokens and label_tokens (of this step, all ranks,
    without padding), total_tokens, tokens_per_s, step_s, data_wait_s, mem_bytes, mfu (when the peak
    is known); loss_hex, grad_norm_hex: exact values"""
    SAMPLES = "samples"
    """step, ids: dataset ids consumed by this rank in that step (only with log_sample_ids)"""
    VALIDATION = "validation"
    """step, loss, label_tokens, samples, val_s; loss_hex: exact value"""
    ANOMALY = "anomaly"
    """step, what (not_finite, weights_not_finite, loss_spike), action (warned, skipped, rollback),
    loss, grad_norm, z, position and end (the step's data: first position, and the one after the
    last), samples (ids of some samples); with rollback: first_step, last_step, windows"""
    ROLLBACK = "rollback"
    """what, first_step, last_step, windows (positions left out from now on), samples: the run goes
    back to a checkpoint from before first_step (supervisor, skips.jsonl)"""
    WARNED = "warned"
    """step: Slurm sent its warning signal; the supervisor finds out what it means"""
    CHECKPOINT = "checkpoint"
    """step, path, bytes, blocked_s, save_s: published"""
    CHECKPOINT_INTERVAL = "checkpoint_interval"
    """step, interval_s, interval_steps (about), bound (what decides: formula, cost, risk),
    blocked_s, slowed_s, save_s (of a typical save), mttf_s, failures: the automatic interval is new
    or has changed by a fifth (rank 0)"""
    CHECKPOINT_FAILED = "checkpoint_failed"
    """step, path, reason: could not be saved (disk full, ...); training went on"""
    CHECKPOINT_REJECTED = "checkpoint_rejected"
    """path, reason: failed verification and was not used"""
    RESUME = "resume"
    """step, path, load_s: training state restored from there"""
    SAMPLE = "sample"
    """prompt, text: generated at the end"""
    EXPORT = "export"
    """path, bytes, export_s"""
    STOPPED = "stopped"
    """step, reason, signalled (a TERM reached this very rank): saved and stopped as asked"""
    FINISH = "finish"
    """step: this rank's training is complete and its results are on disk"""
    FAILURE = "failure"
    """exception, message, where (file:line), traceback, phase, step, victim"""
    ATTEMPT_START = "attempt_start"
    """attempt, job_id, nodes, nodes_idle, world_size, restart_count; of a job's first attempt:
    preflight (mode, took_s, nodes by level, unfit) (supervisor)"""
    ATTEMPT_END = "attempt_end"
    """attempt, cause, action, evidence, first_step, last_step, exit_codes, nodes, nodes_lost (node:
    sign), strikes (node, why, alone: one is enough), nodes_excluded (from the next job)
    (supervisor)"""
    LEAD = "lead"
    """fit, lead_s, why: the lead before the time limit is not the configured one (supervisor)"""
    SUBMITTED = "submitted"
    """job_id, attempt (the newest before), cluster, user, host, via, sbatch (parameters); of a job
    that a supervisor submitted: after (the job it continues), excluded"""


class Phase(StrEnum):
    """What a rank is busy with; each has its own time budget."""

    IMPORT = "import"
    RENDEZVOUS = "rendezvous"
    DATA = "data"
    BUILD = "build"
    LOAD = "load"
    FIRST_STEP = "first_step"
    STEP = "step"
    VALIDATE = "validate"
    SAVE = "save"
    EXPORT = "export"
    EXIT = "exit"


@dataclass
class EventWriter:
    """Appends events of one rank (or of the supervisor, rank -1) to one file.

    ``dropped`` counts lines that could not be written: telemetry never stops training. The next
    line that can be written says how many were lost before it. Nothing is written once ``fenced``.
    """

    path: Path
    rank: int
    attempt: int
    job_id: str
    dropped: int = 0
    fenced: Callable[[], bool] = open_gate
    _writing: dict[int, float] = field(default_factory=dict)

    def stalled_s(self) -> float:
        """Seconds for which a write of any thread has not returned; 0 while nobody writes."""
        return max((time.monotonic() - begun for begun in list(self._writing.values())), default=0)

    def write(self, kind: Kind, **fields: Any) -> None:
        """Append one event; a full disk or a read-only folder only raises ``dropped``."""
        event = {
            "v": VERSION,
            "kind": str(kind),
            "t": round(time.time(), 6),
            "rank": self.rank,
            "attempt": self.attempt,
            "job_id": self.job_id,
            **({"dropped": self.dropped} if self.dropped else {}),
            **fields,
        }
        thread = threading.get_ident()
        self._writing[thread] = time.monotonic()
        try:
            if not self.fenced():
                append_line(self.path, event)
        except OSError:
            self.dropped += 1
        finally:
            del self._writing[thread]


def append_line(path: Path, value: dict[str, Any]) -> None:
    """Append one JSON line with a single write; heals a torn line left by a killed writer.

    Raises:
        OSError: the line could not be written whole.
    """
    line = json.dumps(_finite(value), separators=(",", ":"), allow_nan=False).encode() + b"\n"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    try:
        end = os.lseek(descriptor, 0, os.SEEK_END)
        if end and os.pread(descriptor, 1, end - 1) != b"\n":
            line = b"\n" + line
        if os.write(descriptor, line) != len(line):
            raise OSError(f"short write to {path}")
    finally:
        os.close(descriptor)


def read_events(path: Path, *, kinds: frozenset[Kind] | None = None) -> Iterator[dict[str, Any]]:
    """Yield the events of a file in order; a missing file yields nothing, rubbish is skipped.

    So is a line of an older attempt after one of a newer attempt: a fenced writer came too late.
    """
    newest = 0
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            event = parse_event(line)
            if event is None:
                continue
            attempt = event.get("attempt")
            if isinstance(attempt, int):
                if attempt < newest:
                    continue
                newest = attempt
            if kinds is None or event["kind"] in kinds:
                yield event


def parse_event(line: bytes) -> dict[str, Any] | None:
    """One event, or None for a torn line, rubbish or a line that is no event."""
    if not line.endswith(b"\n"):
        return None
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and isinstance(event.get("kind"), str) else None


def curve(path: Path) -> dict[int, dict[str, Any]]:
    """Step events by step; where a step was computed again after a restart, the last one holds."""
    return {event["step"]: event for event in read_events(path, kinds=frozenset({Kind.STEP}))}


def number(value: object) -> float | None:
    """A number of an event, also one that is not finite."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        # JSON has no NaN, so it was written by name.
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def integer(value: object) -> int | None:
    """The same as an integer."""
    found = number(value)
    return None if found is None or not math.isfinite(found) else int(found)


def mapping(value: object) -> Event:
    """The value where it is a mapping, else an empty one."""
    return value if isinstance(value, dict) else {}


def _finite(value: Any) -> Any:
    """JSON has no NaN: a number that is not finite becomes its name as a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
