"""The monitor's files about one run: state, deliveries, history, the log of alerts.

State is one file, replaced as a whole: a transition and the message about it are there together or
not at all. Deliveries are appended by whoever holds the outbox's lock, all else by whoever holds
the state's lock; flock(2) ends with the last process that holds the descriptor, so a kill -9 leaves
no lock behind.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from submitrain.errors import UserError
from submitrain.events import VERSION, append_line, read_events, read_tail
from submitrain.monitor.alerts.state import RunAlerts
from submitrain.run_folder import RunDir, write_json_atomically

ALERT, DELIVERY, POLL = "alert", "delivery", "look"
"""Kinds of lines in alerts.jsonl, deliveries.jsonl and history.jsonl."""


@dataclass(frozen=True)
class AlertFiles:
    """Files of one run; ``folder`` holds all but alerts.jsonl."""

    run_id: str
    folder: Path
    log: Path

    @classmethod
    def of(cls, run: Path, state_dir: Path | None = None) -> AlertFiles:
        """In the run folder, or in ``state_dir`` where that may not be written."""
        run_dir = RunDir(run)
        if state_dir is None:
            return cls(run.name, run_dir.monitor, run_dir.alerts)
        folder = state_dir / run.name
        return cls(run.name, folder, folder / run_dir.alerts.name)

    @property
    def state(self) -> Path:
        """Alerts, what waits, what is on its way."""
        return self.folder / "state.json"

    @property
    def deliveries(self) -> Path:
        """One line before and one after every try to send a message."""
        return self.folder / "deliveries.jsonl"

    @property
    def history(self) -> Path:
        """One line for every poll that saw something new."""
        return self.folder / "history.jsonl"

    def prepare(self) -> None:
        """Make the folder.

        Raises:
            UserError: it cannot be made; the message names the way out.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"{self.folder}: cannot be made: {error.strerror}; name a folder of your own by "
                "--state-dir"
            ) from error

    def load(self) -> RunAlerts | None:
        """The state, None before the first poll.

        Raises:
            UserError: the file is damaged, which no crash of ours does.
        """
        try:
            return RunAlerts.from_json(json.loads(self.state.read_text()))
        except FileNotFoundError:
            return None
        except ValueError as error:
            what = " ".join(str(error).split())
            raise UserError(
                f"{self.state}: expected the monitor's state, got something else ({what}); move "
                "it away to begin anew"
            ) from error

    def save(self, state: RunAlerts) -> None:
        """Replace the state as a whole, durably."""
        write_json_atomically(self.state, state.as_json())

    def record(self, state: RunAlerts) -> RunAlerts:
        """Append to alerts.jsonl what may be missing there; each transition is there once."""
        if not state.unlogged:
            return state
        there = {line.get("key") for line in read_tail(self.log)}
        for notice in state.unlogged:
            if notice.key not in there:
                append_line(self.log, {"v": VERSION, "kind": ALERT, **asdict(notice)})
        return replace(state, unlogged=())

    def append_history(self, line: dict[str, Any]) -> None:
        """Append one line to the history."""
        append_line(self.history, {"v": VERSION, "kind": POLL, **line})

    def append_delivery(self, line: dict[str, Any]) -> None:
        """Append one line about a try to send."""
        append_line(self.deliveries, {"v": VERSION, "kind": DELIVERY, **line})

    def read_deliveries(self) -> Iterator[dict[str, Any]]:
        """All tries so far, oldest first."""
        yield from read_events(self.deliveries)

    @contextmanager
    def locked(self, what: str) -> Iterator[bool]:
        """Hold the lock ``state`` or ``outbox``; yields False where somebody else has it."""
        path = self.folder / f"{what}.lock"
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                yield False
            except OSError as error:
                raise UserError(
                    f"{path}: this file system has no locks ({error.strerror}), so two monitors "
                    "could both send; name a folder on another one by --state-dir"
                ) from error
            else:
                yield True
        finally:
            os.close(descriptor)
