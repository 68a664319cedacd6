"""Append-only event files: how ranks and supervisor tell everyone else what happened.

One JSON object per line, written with one ``write``; one writer per file. Readers skip a torn last
line, unknown kinds, unknown fields, and what a fenced attempt wrote too late
(``submitrain.fence``). A write error never stops training. Imports no torch.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from submitrain.text import read_end

Event = dict[str, Any]
VERSION = 1
TAIL_BYTES = 256 * 1024
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
    fenced: Callable[[], bool] = lambda: False
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


def parse_events(lines: list[bytes]) -> list[Event]:
    """The events of whole lines; parsed as one list where no line is rubbish, at half the time."""
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        values = []
    if len(values) != len(lines):
        return [event for line in lines if (event := parse_event(line)) is not None]
    return [one for one in values if isinstance(one, dict) and isinstance(one.get("kind"), str)]


def read_tail(
    path: Path, *, limit_bytes: int = TAIL_BYTES, kinds: tuple[Kind, ...] = ()
) -> list[Event]:
    """The last events of a file, at most ``limit_bytes`` of it; of these kinds, if any are named.

    Nearly all lines are heartbeats or steps: those of other kinds are left out unparsed.
    """
    try:
        data = read_end(path, limit_bytes)
    except FileNotFoundError:
        return []
    words = [f'"{kind}"'.encode() for kind in kinds]
    if words and not any(word in data for word in words):
        return []
    whole = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    if not words:
        return parse_events(whole)
    named = parse_events([line for line in whole if any(word in line for word in words)])
    return [event for event in named if event["kind"] in kinds]


@dataclass
class EventTail:
    """Reads what was appended to one file since the last read; a torn line waits for its end."""

    path: Path
    offset: int
    readable: bool = True
    """Whether the last read could tell what the file holds."""

    @classmethod
    def at_end(cls, path: Path) -> EventTail:
        """A tail that starts where the file ends now."""
        try:
            return cls(path, path.stat().st_size)
        except OSError:
            return cls(path, 0)

    def read(self) -> list[Event]:
        """New whole events; nothing when the file cannot be read now."""
        self.readable = True
        try:
            with self.path.open("rb") as file:
                # Opened anew each time: that is what makes NFS show other hosts' appends.
                file.seek(0, os.SEEK_END)
                if file.tell() <= self.offset:
                    return []
                file.seek(self.offset)
                data = file.read()
        except OSError as error:
            self.readable = isinstance(error, FileNotFoundError)
            return []
        whole, newline, _ = data.rpartition(b"\n")
        self.offset += len(whole) + len(newline)
        events = (parse_event(line + b"\n") for line in whole.split(b"\n"))
        return [event for event in events if event is not None]


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
