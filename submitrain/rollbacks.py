"""Rollbacks of a run: resume from an earlier checkpoint and skip the data that caused trouble.

``skips.jsonl`` in the run folder has one line for each, appended by the supervisor between two
attempts. It is a part of the run's identity: every later attempt skips the same data and uses no
checkpoint that an earlier attempt made after the trouble began.

A position counts units since the start of the run, over all epochs (``train.data.order``). A window
``(start, stop)`` takes the positions from ``start`` to ``stop`` (not included) out of the stream;
all others are consumed exactly once, whatever the world size.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from submitrain.errors import DataError
from submitrain.events import VERSION, Kind, append_line, read_events
from submitrain.run_folder import RunDir

Window = tuple[int, int]


@dataclass(frozen=True)
class Skips:
    """Disjoint windows in order; the same on every rank and in every attempt that follows."""

    windows: tuple[Window, ...] = ()

    @classmethod
    def of(cls, windows: Iterable[Window]) -> Skips:
        """Windows in any order, overlapping or not, as disjoint ones."""
        merged: list[Window] = []
        for start, stop in sorted(w for w in windows if w[0] < w[1]):
            if merged and start <= merged[-1][1]:
                merged[-1] = (merged[-1][0], max(stop, merged[-1][1]))
            else:
                merged.append((start, stop))
        return cls(tuple(merged))

    def ranges(self, start: int, stop: int) -> list[Window]:
        """What is left of the positions ``start`` to ``stop`` (not included), in order."""
        left: list[Window] = []
        for first, end in self.windows:
            if end <= start:
                continue
            if first >= stop:
                break
            if start < first:
                left.append((start, first))
            start = end
        if start < stop:
            left.append((start, stop))
        return left

    def kept(self, start: int, stop: int) -> int:
        """How many of the positions ``start`` to ``stop`` (not included) are left."""
        return sum(end - first for first, end in self.ranges(start, stop))

    def advance(self, position: int, count: int) -> int:
        """Where the stream stands once ``count`` more units were consumed from ``position`` on."""
        for first, end in self.windows:
            if end <= position:
                continue
            room = max(0, first - position)
            if count <= room:
                return position + count
            count, position = count - room, end
        return position + count

    def covers(self, other: Skips) -> bool:
        """Whether everything that ``other`` leaves out is left out here, too."""
        return all(not self.kept(start, stop) for start, stop in other.windows)

    @classmethod
    def parse(cls, text: str) -> Skips:
        """Inverse of ``text``."""
        found = re.findall(r"\[(\d+), (\d+)\)", text)
        return cls.of((int(start), int(stop)) for start, stop in found)

    @property
    def text(self) -> str:
        """``[40, 48), [96, 100)``."""
        return ", ".join(f"[{start}, {stop})" for start, stop in self.windows)


NO_SKIPS = Skips()
"""Nothing is left out."""


@dataclass(frozen=True)
class Rollback:
    """One rollback, as the ranks ask for it and as the supervisor writes it down."""

    attempt: int
    """The attempt that met the trouble."""
    what: str
    """``not_finite``, ``weights_not_finite`` or ``loss_spike``."""
    first_step: int
    """First optimizer step that is undone; checkpoints of earlier steps are sound."""
    last_step: int
    windows: tuple[Window, ...]
    """Positions of the data to leave out from now on."""
    samples: tuple[int, ...] = ()
    """Some samples of the last step, for people to look at."""

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Rollback | None:
        """Read an ``anomaly`` or ``rollback`` event; None when it asks for no rollback."""
        try:
            return cls(
                attempt=int(event["attempt"]),
                what=str(event["what"]),
                first_step=int(event["first_step"]),
                last_step=int(event["last_step"]),
                windows=tuple((int(start), int(stop)) for start, stop in event["windows"]),
                samples=tuple(int(one) for one in event.get("samples") or ()),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def rejects(self, *, step: int, attempt: int) -> bool:
        """Whether a checkpoint of ``step`` made by ``attempt`` may hold what is to be undone."""
        return step >= self.first_step and attempt <= self.attempt


def record_rollback(run_dir: RunDir, rollback: Rollback, job_id: str) -> None:
    """Append to ``skips.jsonl``, durably; only the supervisor calls this.

    Raises:
        OSError: it could not be written, so the rollback must not happen.
    """
    line = {
        "v": VERSION,
        "kind": str(Kind.ROLLBACK),
        "attempt": rollback.attempt,
        "job_id": job_id,
        "what": rollback.what,
        "first_step": rollback.first_step,
        "last_step": rollback.last_step,
        "windows": [list(window) for window in rollback.windows],
        "samples": list(rollback.samples),
    }
    append_line(run_dir.skips, line)
    descriptor = os.open(run_dir.skips, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read_rollbacks(run_dir: RunDir) -> list[Rollback]:
    """All rollbacks of a run in order; none when the file is not there."""
    events = read_events(run_dir.skips, kinds=frozenset({Kind.ROLLBACK}))
    return [one for event in events if (one := Rollback.from_event(event)) is not None]


def skips_of(rollbacks: Iterable[Rollback]) -> Skips:
    """The data that all of them together leave out."""
    return Skips.of(window for one in rollbacks for window in one.windows)


SKIPS_KEY = "skips"
"""Where a checkpoint's ``TrainState.extra`` keeps what was left out when it was made."""


def with_skips(extra: Mapping[str, Any], skips: Skips) -> dict[str, Any]:
    """``extra`` with what is left out now; the checkpoint that it comes from left out no more.

    Raises:
        DataError: ``skips.jsonl`` lost a line since then, so positions mean something else now.
    """
    before = Skips.parse(str(extra.get(SKIPS_KEY, "")))
    if not skips.covers(before):
        raise DataError(
            f"skips.jsonl: the checkpoint was made while the positions {before.text} were left "
            f"out, the file says {skips.text or 'nothing'}; restore it from a copy, or move the "
            "checkpoints away to start from step 0"
        )
    return {**extra, SKIPS_KEY: skips.text}
