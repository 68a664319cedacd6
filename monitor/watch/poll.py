"""One poll of one run: observe, judge, remember, and put what is to be told into the outbox.

All its effects are on the run's own files. A poll is done under the run's lock and commits with one
rename, so it may be killed at any moment: either nothing of it has happened, or all of it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from submitrain.errors import SubmitrainError
from submitrain.events import read_events
from submitrain.monitor.alerts.delivery import tries_of
from submitrain.monitor.alerts.rules import RuleResults, judge
from submitrain.monitor.alerts.settings import Settings, read_interval, read_settings
from submitrain.monitor.alerts.state import (
    RESOLVE_AFTER_S,
    RunAlerts,
    Timing,
    advance,
    due_in_s,
    routes,
    seal,
)
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.monitor.audit.ledger import AuditLedger
from submitrain.monitor.audit.transcribe import transcribe_alerts
from submitrain.monitor.watch.disk import read_disk
from submitrain.monitor.watch.observe import Snapshot, diagnosed, observe
from submitrain.run_folder import RunDir
from submitrain.status import RunObservation

log = structlog.get_logger(__name__)

OLD_NEWS_S = 3600.0
"""A run that ended so long before the first poll of it is not news."""
HISTORY_EVERY_S = 600.0
"""A history line is written at least so often while nothing changes."""
DISK_EVERY_S = 30.0
"""Between two test-writes the disk's rule cannot tell, which changes no alert."""


@dataclass(frozen=True)
class PollResult:
    """What a poll leaves for the watcher."""

    line: dict[str, Any]
    settings: Settings | None
    files: AlertFiles
    unsent: bool = False
    closed: bool = False
    """The run has ended and everything about it has been told."""
    ended: bool = False
    due_in_s: float | None = None
    """Seconds until something that waits has to be sent."""


@dataclass(frozen=True)
class RunPoller:
    """How to poll: with the settings of one file, or of each run's own configuration."""

    config: Path | None = None
    state_dir: Path | None = None
    at_once: bool = False
    """Send now instead of waiting for more to send."""
    end_at_once: bool = False
    """The same of what is told when a run has ended: the time that is left is short."""
    _ledgers: dict[Path, AuditLedger] = field(default_factory=dict, init=False, repr=False)

    def settings_of(self, folder: Path) -> Settings:
        """Settings for a run; how often it saves is its own configuration's word."""
        own = RunDir(folder).config
        if self.config is None:
            return read_settings(own)
        interval = read_interval(own)
        return replace(read_settings(self.config), checkpoint_interval_steps=interval)

    def poll(self, observation: RunObservation, now: float) -> PollResult:
        """Poll a run; ``now`` in UTC seconds.

        Raises:
            ConfigError, UserError: its settings are wrong, or its files cannot be written.
        """
        folder, status = observation.evidence.folder, observation.status
        files = AlertFiles.of(folder, self.state_dir)
        line = {"t": now, "run_id": folder.name, "state": str(status.state)}
        old = status.state.ended and now - (status.ended_at or 0.0) > OLD_NEWS_S
        if old and not files.state.exists():
            return PollResult(line, None, files, ended=True, closed=True)
        settings = self.settings_of(folder)
        files.prepare()
        with files.locked("state") as mine:
            if not mine:  # another monitor is polling it
                return PollResult(line, settings, files, unsent=True)
            return self._poll(observation, settings, files, now)

    def _poll(
        self, observation: RunObservation, settings: Settings, files: AlertFiles, now: float
    ) -> PollResult:
        # A monitor that was killed after its state was saved may not have logged what is in it.
        before = files.record(files.load() or RunAlerts(files.run_id))
        snapshot = self._snapshot(observation, settings, before, now)
        # Evidence is text from logs: secrets must not leave with it.
        results = judge(snapshot, settings.limits).redacted(settings.redact)
        tries = tries_of(files.read_deliveries()) if before.outbox else {}
        undone = tuple(m for m in before.outbox if not (m.key in tries and tries[m.key].done))
        ended = snapshot.state.ended
        timing = Timing(settings.alerts.remind_s, 0.0 if ended else RESOLVE_AFTER_S)
        state = advance(replace(before, outbox=undone), results, now, timing)
        at_once = self.at_once or (ended and self.end_at_once)
        group_s = 0.0 if at_once else settings.alerts.group_s
        state = seal(state, routes(settings.alerts, settings.channels), now, group_s=group_s)
        samples = replace(snapshot.samples, seen_step=snapshot.step, looked_at=now)
        line = line_of(snapshot, results, state, settings)
        # Lines of the history differ in something that lasts, or come in regular intervals.
        lasting = (line.keys() | before.last.keys()) - {"t", "free_bytes", "unknown"}
        overdue = now - float(before.last.get("t", 0.0)) >= HISTORY_EVERY_S
        write = overdue or any(before.last.get(key) != line.get(key) for key in lasting)
        state = replace(state, samples=samples, last=line if write else before.last)
        files.save(state)
        if write:
            files.append_history(line)
        files.record(state)
        if self.state_dir is None:
            told = bool(state.unlogged) or undone != before.outbox
            self._audit(observation.evidence.folder, files, told=told)
        return PollResult(
            line,
            settings,
            files,
            unsent=state.unsent,
            ended=ended,
            closed=ended and not state.unsent,
            due_in_s=due_in_s(state, now, group_s=group_s),
        )

    def _snapshot(
        self, observation: RunObservation, settings: Settings, before: RunAlerts, now: float
    ) -> Snapshot:
        folder, free = observation.evidence.folder, before.samples.free
        disk = None
        recently = bool(free) and 0 <= now - free[-1][0] < DISK_EVERY_S
        if not observation.status.state.ended and not recently:
            disk = read_disk(RunDir(folder).checkpoints.resolve())
        interval = settings.checkpoint_interval_steps
        snapshot = observe(
            observation, before.samples, now=now, checkpoint_interval_steps=interval, disk=disk
        )
        last = before.last
        if last.get("attempt") == snapshot.attempt and last.get("diagnosis"):
            # The logs of a failed run are read only once.
            return replace(snapshot, diagnosis=last["diagnosis"], remedy=last.get("remedy", ""))
        return diagnosed(snapshot, folder)

    def _audit(self, folder: Path, files: AlertFiles, *, told: bool) -> None:
        """Put what was told and delivered into the audit trail, whoever polled when it happened."""
        run_dir = RunDir(folder)
        first = folder not in self._ledgers
        if not told and not (first and files.log.exists()):
            return
        ledger = self._ledgers.setdefault(folder, AuditLedger(run_dir, "monitor"))
        try:
            alerts, deliveries = read_events(files.log), files.read_deliveries()
            transcribe_alerts(run_dir, ledger, alerts=alerts, deliveries=deliveries)
        except (SubmitrainError, OSError) as error:
            # The trail must not keep an alert from being sent.
            log.error("audit_not_written", why=f"{type(error).__name__}: {error}")


def line_of(
    snapshot: Snapshot, results: RuleResults, state: RunAlerts, settings: Settings
) -> dict[str, Any]:
    """The run in one line of history; numbers that are not known are left out."""
    last = snapshot.steps[-1] if snapshot.steps else None
    loss = last.loss if last else None
    rates, free = snapshot.samples.rates, snapshot.samples.free
    values: dict[str, Any] = {
        "t": round(snapshot.now, 3),
        "run_id": snapshot.run_id,
        "state": str(snapshot.state),
        "why": settings.redact(snapshot.why),
        "attempt": snapshot.attempt,
        "step": snapshot.step,
        "total_steps": snapshot.total_steps,
        # JSON has no NaN: a number that is not finite becomes its name.
        "loss": str(loss) if loss is not None and not math.isfinite(loss) else loss,
        "tokens_per_s": rates[-1][1] if rates and rates[-1][2] == snapshot.attempt else None,
        "checkpoint_step": snapshot.checkpoints.committed_step or None,
        "free_bytes": free[-1][1] if free else None,
        "alerts": [
            {"rule": str(a.rule), "subject": a.subject, "severity": str(a.severity), "text": a.text}
            | ({"muted_by": a.muted_by} if a.muted_by else {})
            for a in state.firing
        ],
        "diagnosis": settings.redact(snapshot.diagnosis) or None,
        "remedy": settings.redact(snapshot.remedy) or None,
        "unknown": {str(rule): why for rule, why in results.unknown.items()},
    }
    return {key: value for key, value in values.items() if value is not None}
