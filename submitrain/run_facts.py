"""Reads what a run folder says about its run. The only reading half of ``submitrain.status``.

Large event files are read from their end: a listing of many runs stays quick.

What single values a run folder's events hold. Pure; whatever is not there is None or empty.
"""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from submitrain.attempts import Attempt, Cause, read_attempts
from submitrain.events import Event, Kind, number, parse_event, read_events
from submitrain.rollbacks import read_rollbacks
from submitrain.run_folder import RunDir
from submitrain.text import read_end

TAIL_BYTES = 256 * 1024
_CHECKPOINT_PREFIX = "step-"


@dataclass(frozen=True)
class RunEvidence:
    """A run folder's statements, at one moment; nothing is concluded yet.

    ``tail`` holds the last events of rank 0, ``failures`` those of all ranks in the newest attempt.
    """

    folder: Path
    record: Event
    submissions: tuple[Event, ...]
    attempts: tuple[Attempt, ...]
    newest_attempt: int
    summary: Event | None
    cancel_requested: bool
    tail: tuple[Event, ...]
    failures: tuple[Event, ...]
    finished_ranks: int
    checkpoints: tuple[int, ...]
    rollbacks: int = 0
    checkpoint_at: float | None = None
    """When the newest checkpoint was published."""

    @property
    def submission(self) -> Event | None:
        """The newest submission, or None when there is none yet."""
        return self.submissions[-1] if self.submissions else None


@dataclass(frozen=True)
class RunHead:
    """What is needed to ask the scheduler about a run; read before the rest of its folder."""

    folder: Path
    submissions: tuple[Event, ...]
    summary: Event | None

    @property
    def submission(self) -> Event | None:
        """The newest submission, or None when there is none yet."""
        return self.submissions[-1] if self.submissions else None


def read_head(folder: Path) -> RunHead:
    """Read the two small files that name a run's job and its end."""
    run_dir = RunDir(folder)
    summary = _read_json(run_dir.summary)
    return RunHead(folder, tuple(read_events(run_dir.submissions)), summary)


def read_evidence(folder: Path) -> RunEvidence:
    """Read a run folder; whatever is not there yet is simply empty."""
    run_dir = RunDir(folder)
    attempt = run_dir.newest_attempt()
    summary = _read_json(run_dir.summary)
    failures, finished = _ends(run_dir, attempt)
    checkpoints = list_checkpoint_steps(run_dir.checkpoints)
    return RunEvidence(
        folder=folder,
        record=_read_json(run_dir.record) or {},
        submissions=tuple(read_events(run_dir.submissions)),
        attempts=tuple(read_attempts(run_dir)),
        newest_attempt=attempt,
        summary=summary,
        cancel_requested=run_dir.cancel_request.exists(),
        tail=tuple(read_tail(run_dir.events(0))),
        failures=failures,
        finished_ranks=finished,
        checkpoints=checkpoints,
        rollbacks=len(read_rollbacks(run_dir)),
        checkpoint_at=_published_at(run_dir.checkpoints, checkpoints),
    )


def read_tail(path: Path, *, limit_bytes: int = TAIL_BYTES) -> list[Event]:
    """The last events of a file, at most ``limit_bytes`` of it."""
    return _parsed(_last_lines(path, limit_bytes))


def _last_lines(path: Path, limit_bytes: int, *, where: tuple[bytes, ...] = ()) -> list[bytes]:
    """The last whole lines of a file; only those with one of the words ``where``, if there are."""
    try:
        data = read_end(path, limit_bytes)
    except FileNotFoundError:
        return []
    if where and not any(word in data for word in where):
        return []
    whole = [line for line in data.splitlines(keepends=True) if line.endswith(b"\n")]
    return [line for line in whole if not where or any(word in line for word in where)]


def _parsed(lines: list[bytes]) -> list[Event]:
    """The events of whole lines; parsed as one list where no line is rubbish, at half the time."""
    try:
        values = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        values = []
    if len(values) != len(lines):
        return [event for line in lines if (event := parse_event(line)) is not None]
    return [one for one in values if isinstance(one, dict) and isinstance(one.get("kind"), str)]


def list_checkpoint_steps(folder: Path) -> tuple[int, ...]:
    """Steps of the published checkpoints: those that have been renamed and have a manifest."""
    try:
        entries = list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return ()
    names = (entry.name for entry in entries if (entry / "manifest.json").exists())
    digits = (name.removeprefix(_CHECKPOINT_PREFIX) for name in names)
    return tuple(sorted(int(text) for text in digits if text.isdigit()))


def _published_at(folder: Path, steps: tuple[int, ...]) -> float | None:
    if not steps:
        return None
    try:
        newest = folder / f"{_CHECKPOINT_PREFIX}{steps[-1]:08d}" / "manifest.json"
        return newest.stat().st_mtime
    except OSError:
        return None


_ENDS = (f'"{Kind.FAILURE}"'.encode(), f'"{Kind.FINISH}"'.encode())


def _ends(run_dir: RunDir, attempt: int) -> tuple[tuple[Event, ...], int]:
    """Failures of the newest attempt, oldest first, and how many ranks finished in it."""
    failures: list[Event] = []
    finished = 0
    for path in sorted(run_dir.events_dir.glob("rank*.jsonl")):
        # Nearly all lines are heartbeats or steps: they need not be parsed to be left out.
        for event in _parsed(_last_lines(path, 64 * 1024, where=_ENDS)):
            if event.get("attempt") != attempt:
                continue
            if event["kind"] == Kind.FAILURE:
                failures.append(event)
            elif event["kind"] == Kind.FINISH:
                finished += 1
    return tuple(sorted(failures, key=lambda event: float(event.get("t", 0)))), finished


def _read_json(path: Path) -> Event | None:
    try:
        value = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return value if isinstance(value, dict) else None


RECENT_STEPS = 50


def skipped(evidence: RunEvidence) -> int:
    """Steps whose update was left out; what a later attempt computed again counts as it ended."""
    skipped: dict[int, bool] = {}
    for event in evidence.tail:
        step = event.get("step")
        if isinstance(step, int) and event["kind"] == Kind.STEP:
            skipped[step] = False
        elif isinstance(step, int) and event["kind"] == Kind.ANOMALY:
            skipped[step] = event.get("action") == "skipped"
    return sum(skipped.values())


def progress_at(tail: tuple[Event, ...]) -> float | None:
    """When rank 0 last wrote something but a sign of life."""
    idle = frozenset({Kind.HEARTBEAT, Kind.SAMPLES})
    return next((time_of(event) for event in reversed(tail) if event["kind"] not in idle), None)


def ended_at(evidence: RunEvidence) -> float | None:
    """When the last thing happened."""
    times = [time_of(evidence.submission), *(time_of(event) for event in evidence.tail[-1:])]
    times += [one.ended_at or one.started_at for one in evidence.attempts[-1:]]
    return max((t for t in times if t is not None), default=None)


def restarts(evidence: RunEvidence) -> dict[str, int]:
    """Attempts that another one followed, by cause."""
    followed = (one for one in evidence.attempts if one.number < evidence.newest_attempt)
    return dict(sorted(Counter(str(one.cause or Cause.LOST) for one in followed).items()))


def step_of(evidence: RunEvidence) -> int:
    """The newest step that any event names."""
    for event in reversed(evidence.tail):
        if isinstance(event.get("step"), int):
            return int(event["step"])
    return 0


def total_steps(evidence: RunEvidence) -> int | None:
    """Steps that were planned, as far as anybody said."""
    for event in reversed(evidence.tail):
        if isinstance(event.get("total_steps"), int):
            return int(event["total_steps"])
    planned = evidence.record.get("total_steps")
    return planned if isinstance(planned, int) else None


def eta_s(steps: list[Event], step: int, total: int | None) -> float | None:
    """Seconds for the steps that are left, at the median of the recent ones."""
    recent = [
        value
        for event in steps[-RECENT_STEPS:]
        if (value := number(event.get("step_s"))) is not None
    ]
    if total is None or not recent:
        return None
    return round(max(0, total - step) * statistics.median(recent), 1)


def newest_of(events: Iterable[Event], kind: Kind) -> Event:
    """The last event of a kind, or an empty one."""
    found: Event = {}
    for event in events:
        if event["kind"] == kind:
            found = event
    return found


def newest_number(events: tuple[Event, ...], key: str) -> float | None:
    """The newest number of that name."""
    return next((number(event[key]) for event in reversed(events) if key in event), None)


def time_of(event: Event | None) -> float | None:
    """When an event was written, UTC seconds."""
    return number(event.get("t")) if event else None
