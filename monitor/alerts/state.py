"""The state machine of alerts: pending, firing, resolved, and what is to be told of it. Pure.

``advance`` makes notices of transitions only, plus one reminder per ``remind_s`` for what is
critical. A consequence of another alert is kept quiet while that one lasts. What a rule cannot tell
changes nothing. ``seal`` makes messages for channels of the notices. Times are UTC seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from typing import Any

from pydantic import TypeAdapter

from submitrain.config.alerts import AlertsConfig
from submitrain.monitor.alerts.rules import MUTED_BY, Finding, Rule, RuleResults, Severity
from submitrain.monitor.watch.observe import Samples

ONE_BY_ONE = frozenset({"pagerduty"})
"""Channels that keep a state for every alert, so each gets a message of its own."""
CRITICAL_ONLY = frozenset({"pagerduty"})
"""Channels that get critical alerts only, unless the configuration says otherwise."""
RESOLVE_AFTER_S = 60.0
"""An alert ends when it has not held for so long: one good poll does not end what flickers."""
_NEWS = frozenset({Rule.FINISHED})
"""Rules whose findings happen instead of last: nobody is told that they ended."""


class Stage(StrEnum):
    """Where an alert is in its life; a resolved one is forgotten."""

    PENDING = "pending"
    """It holds, but not for long enough yet."""
    FIRING = "firing"


class Transition(StrEnum):
    """What a notice tells."""

    FIRING = "firing"
    REMINDER = "reminder"
    RESOLVED = "resolved"


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


@dataclass(frozen=True)
class Notice:
    """One thing to tell: an alert's transition. ``key`` is unique for it, for ever."""

    key: str
    event: Transition
    run_id: str
    fingerprint: str
    rule: Rule
    subject: str
    severity: Severity
    text: str
    next_step: str
    t: float
    since: float


@dataclass(frozen=True)
class Message:
    """What one channel gets at once; sealed, so that every retry sends the same."""

    key: str
    """Idempotency key: the same for every attempt to send it."""
    channel: str
    entries: tuple[Notice, ...]
    created_at: float

    @property
    def severity(self) -> Severity:
        """The worst of its entries."""
        return min((one.severity for one in self.entries), key=list(Severity).index)

    @property
    def about(self) -> set[tuple[str, str]]:
        """Channel and alert of every entry: such messages are sent in order."""
        return {(self.channel, one.fingerprint) for one in self.entries}


@dataclass(frozen=True)
class RunAlerts:
    """Everything the monitor must not forget about a run; one file, written as a whole."""

    run_id: str
    alerts: tuple[Alert, ...] = ()
    waiting: tuple[Notice, ...] = ()
    """Told soon, together with what joins them."""
    outbox: tuple[Message, ...] = ()
    """Sealed, on their way."""
    unlogged: tuple[Notice, ...] = ()
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
        return {"v": 1, **asdict(self)}

    @classmethod
    def from_json(cls, value: object) -> RunAlerts:
        """Read back what ``as_json`` wrote; unknown fields are skipped.

        Raises:
            ValueError: it is something else.
        """
        return _STATE.validate_python(value)


_STATE = TypeAdapter(RunAlerts)


@dataclass(frozen=True)
class Timing:
    """Seconds of the state machine (``alerts`` section)."""

    remind_s: float = 4 * 3600
    resolve_after_s: float = RESOLVE_AFTER_S


def fingerprint(run_id: str, rule: Rule, subject: str) -> str:
    """Identity of an alert: the same trouble of the same run, whatever its numbers."""
    return hashlib.sha256(f"{run_id}\0{rule}\0{subject}".encode()).hexdigest()[:16]


def advance(state: RunAlerts, results: RuleResults, now: float, timing: Timing) -> RunAlerts:
    """The state after a poll; new notices wait in ``waiting``."""
    found = {fingerprint(state.run_id, one.rule, one.subject): one for one in results.findings}
    known = {alert.fingerprint: alert for alert in state.alerts}
    episodes = dict(state.episodes)
    for key, finding in found.items():
        if key in known:
            # It does not become milder while it lasts.
            worse = min(known[key].severity, finding.severity, key=list(Severity).index)
            alert = replace(known[key], text=finding.text, next_step=finding.next_step)
            known[key] = replace(alert, severity=worse, seen_at=now)
        else:
            episodes[key] = episodes.get(key, 0) + 1
            known[key] = new_alert(state.run_id, finding, now, episode=episodes[key])
    holding, gone = _split(known, found, results, now, timing)
    told = [_tell(state.run_id, alert, now, timing) for alert in _muted(holding)]
    notices = [
        _notice(state.run_id, alert, Transition.RESOLVED, now)
        for alert in gone
        if alert.told and alert.rule not in _NEWS and alert.severity is not Severity.INFO
    ]
    notices += [notice for _, notice in told if notice is not None]
    return replace(
        state,
        alerts=tuple(alert for alert, _ in told),
        waiting=(*state.waiting, *notices),
        unlogged=(*state.unlogged, *notices),
        episodes=episodes,
    )


def new_alert(run_id: str, finding: Finding, now: float, *, episode: int = 1) -> Alert:
    """The alert of a finding that is seen for the first time."""
    return Alert(
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


def _split(
    known: Mapping[str, Alert],
    found: Mapping[str, Finding],
    results: RuleResults,
    now: float,
    timing: Timing,
) -> tuple[list[Alert], list[Alert]]:
    """Alerts that continue (with their new stage), and those that have ended."""
    holding, gone = [], []
    for key, alert in known.items():
        finding = found.get(key)
        if finding is not None:
            fires = alert.stage is Stage.PENDING and now - alert.since >= finding.for_s
            holding.append(replace(alert, stage=Stage.FIRING, fired_at=now) if fires else alert)
        elif alert.rule in results.unknown:
            holding.append(replace(alert, seen_at=now))
        elif alert.stage is Stage.PENDING:
            continue
        elif now - alert.seen_at < timing.resolve_after_s:
            holding.append(alert)
        else:
            gone.append(alert)
    return holding, gone


def _muted(alerts: Sequence[Alert]) -> list[Alert]:
    """Alerts with the cause that mutes them, if it fires; news (a cancelled run) mutes nothing."""
    firing = {
        one.rule
        for one in alerts
        if one.stage is Stage.FIRING and one.severity is not Severity.INFO
    }
    return [
        replace(
            one, muted_by=min(map(str, MUTED_BY.get(one.rule, frozenset()) & firing), default="")
        )
        for one in alerts
    ]


def _tell(run_id: str, alert: Alert, now: float, timing: Timing) -> tuple[Alert, Notice | None]:
    """The alert after telling of it, and what is told, if anything."""
    if alert.stage is not Stage.FIRING or alert.muted_by:
        return alert, None
    if not alert.told:
        alert = replace(alert, told=True, told_at=now)
        return alert, _notice(run_id, alert, Transition.FIRING, now)
    overdue = alert.told_at is not None and now - alert.told_at >= timing.remind_s
    if alert.severity is Severity.CRITICAL and overdue:
        alert = replace(alert, told_at=now)
        return alert, _notice(run_id, alert, Transition.REMINDER, now)
    return alert, None


def _notice(run_id: str, alert: Alert, event: Transition, now: float) -> Notice:
    moment = f"-{int(now)}" if event is Transition.REMINDER else ""
    return Notice(
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


def routes(config: AlertsConfig, set_up: Sequence[str]) -> dict[Severity, tuple[str, ...]]:
    """Channels by severity, of those that are set up."""
    usual = tuple(name for name in set_up if name not in CRITICAL_ONLY)
    chosen = {
        Severity.CRITICAL: (config.critical, tuple(set_up)),
        Severity.WARNING: (config.warning, usual),
        Severity.INFO: (config.info, usual),
    }
    return {
        severity: default if given is None else tuple(one for one in given if one in set_up)
        for severity, (given, default) in chosen.items()
    }


def seal(
    state: RunAlerts,
    routing: Mapping[Severity, Sequence[str]],
    now: float,
    *,
    group_s: float,
) -> RunAlerts:
    """Move what has waited for long enough from ``waiting`` into messages of the outbox.

    Everything that waits goes along as soon as the oldest is due.
    """
    if not state.waiting or now - min(one.t for one in state.waiting) < group_s:
        return state
    messages = []
    for channel in dict.fromkeys(name for names in routing.values() for name in names):
        notices = [one for one in state.waiting if channel in routing[one.severity]]
        groups = [[one] for one in notices] if channel in ONE_BY_ONE else [notices]
        for group in filter(None, groups):
            text = "\0".join([channel, group[0].run_id, *(one.key for one in group)])
            key = hashlib.sha256(text.encode()).hexdigest()[:24]
            messages.append(Message(key, channel, tuple(group), now))
    return replace(state, waiting=(), outbox=(*state.outbox, *messages))


def due_in_s(state: RunAlerts, now: float, *, group_s: float) -> float | None:
    """Seconds until something has to be sealed; None when nothing waits."""
    if not state.waiting:
        return None
    return max(0.0, min(one.t for one in state.waiting) + group_s - now)
