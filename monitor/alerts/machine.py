"""The life of alerts: pending, firing, resolved. A pure function of state, verdicts and time.

Messages are due on transitions only, plus one reminder per ``remind_s`` for what is critical. A
consequence of another alert is kept quiet while that one lasts. What a rule cannot tell changes
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from monitor.alerts.model import Alert, Entry, Event, RunAlerts, Stage, fingerprint
from monitor.rules import MUTED_BY, Finding, Rule, Severity, Verdicts

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
