"""What a run folder says about its run, at one moment; nothing is concluded yet.

Large event files are read from their end: a listing of many runs stays quick. Whatever is not there
is None or empty.
"""

from __future__ import annotations

import statistics
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from submitrain.attempts import Attempt, Cause, read_attempts
from submitrain.events import Event, Kind, number, read_events, read_tail
from submitrain.rollbacks import read_rollbacks
from submitrain.run_folder import RunDir, read_json

RECENT_STEPS = 50
ENDS_BYTES = 64 * 1024
_CHECKPOINT_PREFIX = "step-"
_SIGNS_OF_LIFE = frozenset({Kind.HEARTBEAT, Kind.SAMPLES})


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


@dataclass(frozen=True)
class RunEvidence(RunHead):
    """All that a run folder says."""

    record: Event
    attempts: tuple[Attempt, ...]
    newest_attempt: int
    cancel_requested: bool
    tail: tuple[Event, ...]
    """The last events of rank 0."""
    failures: tuple[Event, ...]
    """Of all ranks in the newest attempt, oldest first."""
    finished_ranks: int
    checkpoints: tuple[int, ...]
    rollbacks: int
    checkpoint_at: float | None
    """When the newest checkpoint was published."""

    @property
    def step(self) -> int:
        """The newest step that any event names."""
        steps = (event.get("step") for event in reversed(self.tail))
        return next((step for step in steps if isinstance(step, int)), 0)

    @property
    def total_steps(self) -> int | None:
        """Steps that were planned, as far as anybody said."""
        totals = (event.get("total_steps") for event in (*reversed(self.tail), self.record))
        return next((total for total in totals if isinstance(total, int)), None)

    @property
    def eta_s(self) -> float | None:
        """Seconds for the steps that are left, at the median of the recent ones."""
        steps = [event for event in self.tail if event["kind"] == Kind.STEP]
        found = [number(event.get("step_s")) for event in steps[-RECENT_STEPS:]]
        recent = [step_s for step_s in found if step_s is not None]
        if self.total_steps is None or not recent:
            return None
        return round(max(0, self.total_steps - self.step) * statistics.median(recent), 1)

    @property
    def skipped_steps(self) -> int:
        """Steps without an update; what a later attempt computed again counts as it ended."""
        skipped: dict[int, bool] = {}
        for event in self.tail:
            step = event.get("step")
            if isinstance(step, int) and event["kind"] == Kind.STEP:
                skipped[step] = False
            elif isinstance(step, int) and event["kind"] == Kind.ANOMALY:
                skipped[step] = event.get("action") == "skipped"
        return sum(skipped.values())

    @property
    def progress_at(self) -> float | None:
        """When rank 0 last wrote something but a sign of life."""
        events = (event for event in reversed(self.tail) if event["kind"] not in _SIGNS_OF_LIFE)
        return time_of(next(events, None))

    @property
    def ended_at(self) -> float | None:
        """When the last thing happened."""
        times = [time_of(self.submission), *(time_of(event) for event in self.tail[-1:])]
        times += [one.ended_at or one.started_at for one in self.attempts[-1:]]
        return max((t for t in times if t is not None), default=None)

    @property
    def restarts(self) -> dict[str, int]:
        """Attempts that another one followed, by cause."""
        followed = (one for one in self.attempts if one.number < self.newest_attempt)
        return dict(sorted(Counter(str(one.cause or Cause.LOST) for one in followed).items()))

    def newest(self, kind: Kind) -> Event:
        """Rank 0's last event of a kind, or an empty one."""
        return next((event for event in reversed(self.tail) if event["kind"] == kind), {})

    def newest_number(self, key: str) -> float | None:
        """The newest number of that name in rank 0's events."""
        return next((number(event[key]) for event in reversed(self.tail) if key in event), None)


def time_of(event: Event | None) -> float | None:
    """When an event was written, UTC seconds."""
    return number(event.get("t")) if event else None


def read_head(folder: Path) -> RunHead:
    """Read the two small files that name a run's job and its end."""
    run_dir = RunDir(folder)
    summary = read_json(run_dir.summary)
    return RunHead(folder, tuple(read_events(run_dir.submissions)), summary)


def read_evidence(folder: Path) -> RunEvidence:
    """Read a run folder; whatever is not there yet is simply empty."""
    run_dir = RunDir(folder)
    attempt = run_dir.newest_attempt()
    summary = read_json(run_dir.summary)
    failures, finished = _read_ends(run_dir, attempt)
    checkpoints = list_checkpoint_steps(run_dir.checkpoints)
    return RunEvidence(
        folder=folder,
        record=read_json(run_dir.record) or {},
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


def _read_ends(run_dir: RunDir, attempt: int) -> tuple[tuple[Event, ...], int]:
    """Failures of the newest attempt, oldest first, and how many ranks finished in it."""
    failures: list[Event] = []
    finished = 0
    for path in sorted(run_dir.events_dir.glob("rank*.jsonl")):
        ends = read_tail(path, limit_bytes=ENDS_BYTES, kinds=(Kind.FAILURE, Kind.FINISH))
        ours = [event for event in ends if event.get("attempt") == attempt]
        failures += [event for event in ours if event["kind"] == Kind.FAILURE]
        finished += sum(event["kind"] == Kind.FINISH for event in ours)
    return tuple(sorted(failures, key=lambda event: float(event.get("t", 0)))), finished
