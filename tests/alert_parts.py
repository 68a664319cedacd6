"""Parts that the tests of alerts share: messages, settings, run folders."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from submitrain.config.alerts import AlertsConfig
from submitrain.events import append_line
from submitrain.monitor.alerts.rules import Limits, Rule, Severity
from submitrain.monitor.alerts.settings import Settings
from submitrain.monitor.alerts.state import Message, Notice, RunAlerts, Transition
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.run_folder import RunDir, write_json_atomically

RUN_ID = "toy-20260101T000000-0a1b2c3d"


def entry(
    event: Transition = Transition.FIRING,
    *,
    rule: Rule = Rule.HANG,
    severity: Severity = Severity.CRITICAL,
    text: str = "no progress for 61 s",
) -> Notice:
    return Notice(
        key=f"f00d-{rule}-{event}",
        event=event,
        run_id=RUN_ID,
        fingerprint=f"f00d-{rule}",
        rule=rule,
        subject="run",
        severity=severity,
        text=text,
        next_step="look at it",
        t=1000.0,
        since=900.0,
    )


def message(channel: str, *entries: Notice, key: str = "k1") -> Message:
    return Message(key, channel, entries or (entry(),), 1000.0)


def settings(environ: Mapping[str, str] | None = None, **alerts: Any) -> Settings:
    return Settings(AlertsConfig.model_validate(alerts), Limits(), 10, environ or {})


def outbox(folder: Path, *messages: Message) -> AlertFiles:
    """Files of a run with these messages to send."""
    files = AlertFiles(RUN_ID, folder / "monitor", folder / "alerts.jsonl")
    files.prepare()
    files.save(RunAlerts(RUN_ID, outbox=messages))
    return files


class FakeRun:
    """A run folder as launcher and ranks would have written it, by hand."""

    def __init__(self, runs: Path, *, name: str = RUN_ID, config: dict[str, Any] | None = None):
        self.dir = RunDir(runs / name)
        self.dir.events_dir.mkdir(parents=True)
        self.configure(config or {})
        write_json_atomically(self.dir.record, {"cluster": "local", "total_steps": 100})
        self.submit()

    def configure(self, config: dict[str, Any]) -> None:
        self.dir.config.write_text(yaml.safe_dump(config))

    def submit(self, **fields: Any) -> None:
        values = {"attempt": 0, "job_id": "1", "cluster": "local", **fields}
        self._append(self.dir.submissions, "submitted", **values)

    def begin(self) -> int:
        attempt = self.dir.claim_attempt()
        fields = {"attempt": attempt, "world_size": 2, "nodes": ["n1", "n2"]}
        self._append(self.dir.attempts, "attempt_start", **fields)
        return attempt

    def event(self, kind: str, *, rank: int = 0, **fields: Any) -> None:
        values = {"rank": rank, "attempt": self.dir.newest_attempt(), **fields}
        self._append(self.dir.events(rank), kind, **values)

    def steps(self, first: int, last: int, **fields: Any) -> None:
        for step in range(first, last + 1):
            self.event("step", step=step, **{"loss": 2.0, "step_s": 0.1, **fields})

    def end(self, cause: str, action: str, **fields: Any) -> None:
        values = {"attempt": self.dir.newest_attempt(), "cause": cause, "action": action}
        self._append(self.dir.attempts, "attempt_end", **values, **fields)

    def finish(self, state: str = "finished", explanation: str = "") -> None:
        write_json_atomically(self.dir.summary, {"state": state, "explanation": explanation})

    def alerts(self) -> list[dict[str, Any]]:
        return lines(self.dir.alerts)

    def state(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.dir.monitor / "state.json").read_text())
        return value

    def _append(self, path: Path, kind: str, **fields: Any) -> None:
        append_line(path, {"v": 1, "kind": kind, "t": time.time(), **fields})


def lines(path: Path) -> list[dict[str, Any]]:
    """All lines of a JSON-lines file; every one has to be whole."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
