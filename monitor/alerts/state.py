"""Alerts, what happens to them, and the messages that tell of it. Pure; times are UTC seconds.

The life of alerts: pending, firing, resolved. A pure function of state, verdicts and time.

Messages are due on transitions only, plus one reminder per ``remind_s`` for what is critical. A
consequence of another alert is kept quiet while that one lasts. What a rule cannot tell changes
nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any, Self

from submitrain.monitor.watch.snapshot import MUTED_BY, Finding, Rule, Samples, Severity, Verdicts


class Stage(StrEnum):
    """Where an alert is in its life; a resolved one is forgotten."""

    PENDING = "pending"
    """It holds, but not for long enough yet."""
    FIRING = "firing"


class Event(StrEnum):
    """What a message tells."""

    FIRING = "firing"
    REMINDER = "reminder"
    RESOLVED = "resolved"


def fingerprint(run_id: str, rule: Rule, subject: str) -> str:
    """Identity of an alert: the same trouble of the same run, whatever its numbers."""
    return hashlib.sha256(f"{run_id}\0{rule}\0{subject}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Alert:
    """One trouble of one run. ``told``: somebody was told that it fires."""

    fingerprint: str
    rule: Rule
    subject: str
    severity: Severity
    text: str
    next_step: str
    stage: Stage
    since: float
    """When it began to hold."""
    seen_at: float
    """When it last held."""
    fired_at: float | None = None
    told: bool = False
    told_at: float | None = None
    muted_by: str = ""
    """The rule of which it is a consequence, while that one is an alert."""
    episode: int = 1
    """Counts how often this fingerprint has begun."""

    @classmethod
    def begin(cls, run_id: str, finding: Finding, now: float, episode: int) -> Self:
        """A finding seen for the first time."""
        return cls(
            fingerprint=fingerprint(run_id, finding.rule, finding.subject),
            rule=finding.rule,
            subject=finding.subject,
            severity=finding.severity,
            text=finding.text,
            next_step=finding.next_step,
            stage=Stage.PENDING,
            since=now,
            seen_at=now,
            episode=episode,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for the state file."""
        return {name: str(v) if isinstance(v, StrEnum) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read back what ``as_json`` wrote; unknown fields are skipped."""
        known = {name: value[name] for name in cls.__dataclass_fields__ if name in value}
        known["rule"] = Rule(known["rule"])
        known["severity"] = Severity(known["severity"])
        known["stage"] = Stage(known["stage"])
        return cls(**known)


@dataclass(frozen=True)
class Entry:
    """One thing to tell: an alert's transition. ``key`` is unique for it, for ever."""

    key: str
    event: Event
    run_id: str
    fingerprint: str
    rule: Rule
    subject: str
    severity: Severity
    text: str
    next_step: str
    t: float
    since: float

    @classmethod
    def of(cls, run_id: str, alert: Alert, event: Event, now: float) -> Self:
        """What to tell of an alert at this moment."""
        moment = f"-{int(now)}" if event is Event.REMINDER else ""
        return cls(
            key=f"{alert.fingerprint}-{alert.episode}-{event}{moment}",
            event=event,
            run_id=run_id,
            fingerprint=alert.fingerprint,
            rule=alert.rule,
            subject=alert.subject,
            severity=alert.severity,
            text=alert.text,
            next_step=alert.next_step,
            t=now,
            since=alert.since,
        )

    def as_json(self) -> dict[str, Any]:
        """Plain values for files and channels."""
        return {name: str(v) if isinstance(v, StrEnum) else v for name, v in asdict(self).items()}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read back what ``as_json`` wrote; unknown fields are skipped."""
        known = {name: value[name] for name in cls.__dataclass_fields__}
        known["event"] = Event(known["event"])
        known["rule"] = Rule(known["rule"])
        known["severity"] = Severity(known["severity"])
        return cls(**known)


@dataclass(frozen=True)
class Message:
    """What one channel gets at once; sealed, so that every retry sends the same."""

    key: str
    """Idempotency key: the same for every attempt to send it."""
    channel: str
    entries: tuple[Entry, ...]
    created_at: float

    @property
    def severity(self) -> Severity:
        """The worst of its entries."""
        return min((one.severity for one in self.entries), key=list(Severity).index)

    def as_json(self) -> dict[str, Any]:
        """Plain values for the outbox."""
        return {
            "key": self.key,
            "channel": self.channel,
            "entries": [one.as_json() for one in self.entries],
            "created_at": self.created_at,
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read back what ``as_json`` wrote."""
        entries = tuple(Entry.from_json(one) for one in value["entries"])
        return cls(value["key"], value["channel"], entries, value["created_at"])


@dataclass(frozen=True)
class RunAlerts:
    """Everything the monitor must not forget about a run; one file, written as a whole."""

    run_id: str
    alerts: tuple[Alert, ...] = ()
    waiting: tuple[Entry, ...] = ()
    """Told soon, together with what joins them."""
    outbox: tuple[Message, ...] = ()
    """Sealed, on their way."""
    unlogged: tuple[Entry, ...] = ()
    """May not have reached alerts.jsonl yet."""
    episodes: Mapping[str, int] = field(default_factory=dict)
    samples: Samples = field(default_factory=Samples)
    last: Mapping[str, Any] = field(default_factory=dict)
    """The newest line of the history."""

    @property
    def firing(self) -> tuple[Alert, ...]:
        """Alerts that hold now, told or muted."""
        return tuple(one for one in self.alerts if one.stage is Stage.FIRING)

    @property
    def unsent(self) -> bool:
        """Whether anything still has to be told."""
        return bool(self.waiting or self.outbox)

    def as_json(self) -> dict[str, Any]:
        """Plain values for the state file."""
        return {
            "v": 1,
            "run_id": self.run_id,
            "alerts": [one.as_json() for one in self.alerts],
            "waiting": [one.as_json() for one in self.waiting],
            "outbox": [one.as_json() for one in self.outbox],
            "unlogged": [one.as_json() for one in self.unlogged],
            "episodes": dict(self.episodes),
            "samples": self.samples.as_json(),
            "last": dict(self.last),
        }

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Self:
        """Read back what ``as_json`` wrote."""
        return cls(
            run_id=value["run_id"],
            alerts=tuple(Alert.from_json(one) for one in value["alerts"]),
            waiting=tuple(Entry.from_json(one) for one in value["waiting"]),
            outbox=tuple(Message.from_json(one) for one in value["outbox"]),
            unlogged=tuple(Entry.from_json(one) for one in value["unlogged"]),
            episodes=dict(value["episodes"]),
            samples=Samples.from_json(value["samples"]),
            last=dict(value.get("last") or {}),
        )


RESOLVE_AFTER_S = 60.0
"""An alert ends when it has not held for so long: one good look does not end what flickers."""
_NEWS = frozenset({Rule.FINISHED})
"""Rules whose findings happen instead of last: nobody is told that they ended."""


@dataclass(frozen=True)
class Timing:
    """Seconds of the state machine (``alerts`` section)."""

    remind_s: float = 4 * 3600
    resolve_after_s: float = RESOLVE_AFTER_S


def advance(state: RunAlerts, verdicts: Verdicts, now: float, timing: Timing) -> RunAlerts:
    """The state after a look; new messages wait in ``waiting``."""
    found = {fingerprint(state.run_id, one.rule, one.subject): one for one in verdicts.findings}
    known = {alert.fingerprint: alert for alert in state.alerts}
    episodes = dict(state.episodes)
    for key, finding in found.items():
        if key not in known:
            episodes[key] = episodes.get(key, 0) + 1
            known[key] = Alert.begin(state.run_id, finding, now, episodes[key])
        else:
            known[key] = _seen(known[key], finding, now)
    holding, gone = _split(known, found, verdicts, now, timing)
    alerts = [_told(state.run_id, one, now, timing) for one in _muted(holding)]
    told = [
        Entry.of(state.run_id, alert, Event.RESOLVED, now)
        for alert in gone
        if alert.told and alert.rule not in _NEWS and alert.severity is not Severity.INFO
    ]
    told += [entry for _, entry in alerts if entry is not None]
    return replace(
        state,
        alerts=tuple(alert for alert, _ in alerts),
        waiting=(*state.waiting, *told),
        unlogged=(*state.unlogged, *told),
        episodes=episodes,
    )


def _seen(alert: Alert, finding: Finding, now: float) -> Alert:
    """The alert with what is said now; it does not become milder while it lasts."""
    worse = min(alert.severity, finding.severity, key=list(Severity).index)
    return replace(
        alert, text=finding.text, next_step=finding.next_step, severity=worse, seen_at=now
    )


def _split(
    known: dict[str, Alert],
    found: dict[str, Finding],
    verdicts: Verdicts,
    now: float,
    timing: Timing,
) -> tuple[list[Alert], list[Alert]]:
    """Alerts that go on (with their new stage), and those that have ended."""
    holding, gone = [], []
    for key, alert in known.items():
        finding = found.get(key)
        if finding is not None:
            fires = alert.stage is Stage.PENDING and now - alert.since >= finding.for_s
            holding.append(replace(alert, stage=Stage.FIRING, fired_at=now) if fires else alert)
        elif alert.rule in verdicts.unknown:
            holding.append(replace(alert, seen_at=now))
        elif alert.stage is Stage.PENDING:
            continue
        elif now - alert.seen_at < timing.resolve_after_s:
            holding.append(alert)
        else:
            gone.append(alert)
    return holding, gone


def _muted(alerts: list[Alert]) -> list[Alert]:
    """Alerts with the cause that mutes them, if it fires."""
    firing = {one.rule for one in alerts if one.stage is Stage.FIRING and _counts(one)}
    return [replace(one, muted_by=_cause(one, firing)) for one in alerts]


def _cause(alert: Alert, firing: set[Rule]) -> str:
    causes = MUTED_BY.get(alert.rule, frozenset()) & firing
    return min((str(one) for one in causes), default="")


def _counts(alert: Alert) -> bool:
    """Whether it can be the cause of others: a cancelled run is no failure."""
    return alert.severity is not Severity.INFO


def _told(run_id: str, alert: Alert, now: float, timing: Timing) -> tuple[Alert, Entry | None]:
    """The alert after telling of it, and what is told, if anything."""
    if alert.stage is not Stage.FIRING or alert.muted_by:
        return alert, None
    if not alert.told:
        alert = replace(alert, told=True, told_at=now)
        return alert, Entry.of(run_id, alert, Event.FIRING, now)
    overdue = alert.told_at is not None and now - alert.told_at >= timing.remind_s
    if alert.severity is Severity.CRITICAL and overdue:
        alert = replace(alert, told_at=now)
        return alert, Entry.of(run_id, alert, Event.REMINDER, now)
    return alert, None
