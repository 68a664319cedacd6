"""One look at one run: observe, judge, remember, tell. All its effects are on the run's own files.

A look is done under the run's lock and commits with one rename, so it may be killed at any moment:
either nothing of it has happened, or all of it.

Looks at the file system beneath a folder: free space, and whether a file can be written.

statvfs knows no quota, so a file is written. A file system that hangs would hang its caller for
ever: a child process looks, and is given up after a time limit.
"""

from __future__ import annotations

import errno
import json
import math
import os
import select
import signal
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import structlog

from submitrain.errors import SubmitrainError
from submitrain.events import read_events
from submitrain.monitor.alerts.delivery import tries_of
from submitrain.monitor.alerts.routing import due_in_s, routes, seal
from submitrain.monitor.alerts.rules import judge
from submitrain.monitor.alerts.settings import Settings, read_interval, read_settings
from submitrain.monitor.alerts.state import RESOLVE_AFTER_S, RunAlerts, Timing, advance
from submitrain.monitor.alerts.store import AlertFiles
from submitrain.monitor.audit.ledger import AuditLedger
from submitrain.monitor.audit.transcribe import transcribe_alerts
from submitrain.monitor.watch.observe import diagnosed, observe
from submitrain.monitor.watch.snapshot import DiskFacts, Samples, Snapshot, Verdicts
from submitrain.run_facts import ended_at
from submitrain.run_folder import RunDir
from submitrain.status import Sight

LIMIT_S = 10.0
WRITTEN_BYTES = 1 << 20
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EFBIG})
"""What a writer meets that says something about the disk; missing rights say nothing."""


def look_at_disk(folder: Path, *, limit_s: float = LIMIT_S) -> DiskFacts:
    """Free space and a test-write in ``folder`` (or the nearest folder above that exists)."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        _answer(folder, writer)
    os.close(writer)
    try:
        text = _read(reader, limit_s)
    finally:
        os.close(reader)
        _end(child)
    if text is None:
        return DiskFacts(str(folder), answered=False, problem=f"no answer within {limit_s:g} s")
    try:
        value = json.loads(text)
        return DiskFacts(value["path"], value["free_bytes"], value["problem"])
    except (ValueError, KeyError):
        return DiskFacts(str(folder), answered=False, problem="it could not be looked at")


def _answer(folder: Path, writer: int) -> None:
    """In the child: look, answer, leave; never returns."""
    try:
        # What the parent holds (locks, sockets) must not live on in a child that hangs.
        keep = os.dup2(writer, 3)
        os.closerange(4, 4096)
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        os.write(keep, json.dumps(_look(folder)).encode())
    finally:
        os._exit(0)


def _look(folder: Path) -> dict[str, object]:
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    space = os.statvfs(folder)
    found = {"path": str(folder), "free_bytes": space.f_bavail * space.f_frsize, "problem": ""}
    test = folder / ".monitor-write-test"
    try:
        descriptor = os.open(test, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            left = WRITTEN_BYTES
            while left:
                left -= os.write(descriptor, bytes(left))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno in _FULL:
            found["problem"] = os.strerror(error.errno or 0)
    finally:
        with suppress(OSError):
            test.unlink()
    return found


def _read(reader: int, limit_s: float) -> str | None:
    deadline, parts = time.monotonic() + limit_s, list[bytes]()
    while (left := deadline - time.monotonic()) > 0:
        ready, _, _ = select.select([reader], [], [], left)
        if not ready:
            return None
        part = os.read(reader, 65536)
        if not part:
            return b"".join(parts).decode()
        parts.append(part)
    return None


def _end(child: int) -> None:
    """Reap the child; one that hangs in the kernel cannot be killed now and is left to init."""
    os.kill(child, signal.SIGKILL)
    for _ in range(20):
        if os.waitpid(child, os.WNOHANG)[0]:
            return
        time.sleep(0.01)


log = structlog.get_logger(__name__)

OLD_NEWS_S = 3600.0
"""A run that ended so long before the first look at it is not news."""
HISTORY_EVERY_S = 600.0
"""A history line is written at least so often while nothing changes."""
DISK_EVERY_S = 30.0
"""Between two looks at the disk its rule cannot tell, which changes no alert."""


@dataclass(frozen=True)
class Report:
    """What a look leaves for the watcher."""

    line: dict[str, Any]
    settings: Settings | None
    files: AlertFiles
    unsent: bool = False
    closed: bool = False
    """The run has ended and everything about it has been told."""
    ended: bool = False
    busy: bool = False
    """Another monitor is looking at it right now."""
    due_in_s: float | None = None
    """Seconds until something that waits has to be sent."""


@dataclass(frozen=True)
class Looker:
    """How to look: settings of one file for all runs, or of each run's own configuration."""

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

    def look(self, sight: Sight, now: float) -> Report:
        """Look at a run; ``now`` in UTC seconds.

        Raises:
            ConfigError, UserError: its settings are wrong, or its files cannot be written.
        """
        folder, status = sight.evidence.folder, sight.status
        files = AlertFiles.of(folder, self.state_dir)
        if not files.state.exists() and status.state.ended and now - _ended_at(sight) > OLD_NEWS_S:
            line = {"t": now, "run_id": folder.name, "state": str(status.state)}
            return Report(line, None, files, ended=True, closed=True)
        settings = self.settings_of(folder)
        files.prepare()
        with files.locked("state") as mine:
            if not mine:
                line = {"t": now, "run_id": folder.name, "state": str(status.state)}
                return Report(line, settings, files, unsent=True, busy=True)
            return self._look(sight, settings, files, now)

    def _look(self, sight: Sight, settings: Settings, files: AlertFiles, now: float) -> Report:
        # A monitor that was killed after its state was saved may not have logged what is in it.
        before = files.record(files.load() or RunAlerts(files.run_id))
        pending = _pruned(before, files)
        snapshot = observe(
            sight,
            before.samples,
            now=now,
            checkpoint_interval_steps=settings.checkpoint_interval_steps,
            disk=_disk(sight, before.samples, now),
        )
        snapshot = _with_cause(snapshot, before, sight.evidence.folder)
        verdicts = _shown(judge(snapshot, settings.limits), settings)
        ended = snapshot.state.ended
        timing = Timing(settings.alerts.remind_s, 0.0 if ended else RESOLVE_AFTER_S)
        state = advance(pending, verdicts, now, timing)
        at_once = self.at_once or (ended and self.end_at_once)
        group_s = 0.0 if at_once else settings.alerts.group_s
        routing = routes(settings.alerts, settings.channels)
        state = seal(state, routing, now, group_s=group_s)
        samples = replace(snapshot.samples, seen_step=snapshot.step, looked_at=now)
        line = line_of(snapshot, verdicts, state, settings)
        write = _differs(before.last, line)
        state = replace(state, samples=samples, last=line if write else before.last)
        files.save(state)
        if write:
            files.append_history(line)
        files.record(state)
        if self.state_dir is None:
            told = bool(state.unlogged) or pending.outbox != before.outbox
            self._audit(sight.evidence.folder, files, told=told)
        return Report(
            line,
            settings,
            files,
            unsent=state.unsent,
            ended=ended,
            closed=ended and not state.unsent,
            due_in_s=due_in_s(state, now, group_s=group_s),
        )

    def _audit(self, folder: Path, files: AlertFiles, *, told: bool) -> None:
        """Put what was told and delivered into the audit trail, whoever looked when it happened."""
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
    snapshot: Snapshot, verdicts: Verdicts, state: RunAlerts, settings: Settings
) -> dict[str, Any]:
    """The run in one line of history; numbers that are not known are left out."""
    last = snapshot.steps[-1] if snapshot.steps else None
    rates, free = snapshot.samples.rates, snapshot.samples.free
    values: dict[str, Any] = {
        "t": round(snapshot.now, 3),
        "run_id": snapshot.run_id,
        "state": str(snapshot.state),
        "why": settings.redact(snapshot.why),
        "attempt": snapshot.attempt,
        "step": snapshot.step,
        "total_steps": snapshot.total_steps,
        "loss": _named(last.loss) if last else None,
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
        "unknown": {str(rule): why for rule, why in verdicts.unknown.items()},
    }
    return {key: value for key, value in values.items() if value is not None}


def _named(value: float | None) -> float | str | None:
    """JSON has no NaN: a number that is not finite becomes its name."""
    return value if value is None or math.isfinite(value) else str(value)


def _with_cause(snapshot: Snapshot, before: RunAlerts, folder: Path) -> Snapshot:
    """A failed run's snapshot with its diagnosis, for which the logs are read only once."""
    last = before.last
    if last.get("attempt") == snapshot.attempt and last.get("diagnosis"):
        return replace(snapshot, diagnosis=last["diagnosis"], remedy=last.get("remedy", ""))
    return diagnosed(snapshot, folder)


def _differs(old: Mapping[str, Any], new: Mapping[str, Any]) -> bool:
    if float(new["t"]) - float(old.get("t", 0.0)) >= HISTORY_EVERY_S:
        return True
    passing = ("t", "free_bytes", "unknown")
    return {k: v for k, v in old.items() if k not in passing} != {
        k: v for k, v in new.items() if k not in passing
    }


def _pruned(state: RunAlerts, files: AlertFiles) -> RunAlerts:
    """The state without messages that were delivered, or given up."""
    if not state.outbox:
        return state
    tries = tries_of(files.read_deliveries())
    left = tuple(m for m in state.outbox if not (m.key in tries and tries[m.key].done))
    return replace(state, outbox=left)


def _shown(verdicts: Verdicts, settings: Settings) -> Verdicts:
    """The verdicts without secrets: evidence is text from logs."""
    findings = tuple(
        replace(one, text=settings.redact(one.text), next_step=settings.redact(one.next_step))
        for one in verdicts.findings
    )
    return Verdicts(findings, verdicts.unknown)


def _disk(sight: Sight, past: Samples, now: float) -> DiskFacts | None:
    """The file system beneath the checkpoints of a run that may write to it."""
    if sight.status.state.ended:
        return None
    if past.free and 0 <= now - past.free[-1][0] < DISK_EVERY_S:
        return None
    return look_at_disk(RunDir(sight.evidence.folder).checkpoints.resolve())


def _ended_at(sight: Sight) -> float:
    """When a run ended, as far as its folder tells."""
    evidence = sight.evidence
    return ended_at(evidence) or 0.0
