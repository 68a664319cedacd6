"""Which channels hear of what, and what goes into one message. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace

from monitor.alerts.model import Entry, Message, RunAlerts
from monitor.rules import Severity
from train.config.alerts import AlertsConfig

ONE_BY_ONE = frozenset({"pagerduty"})
"""Channels that keep a state for every alert, so each gets a message of its own."""
CRITICAL_ONLY = frozenset({"pagerduty"})
"""Channels that get critical alerts only, unless the configuration says otherwise."""


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
    channels = list(dict.fromkeys(name for names in routing.values() for name in names))
    messages = [
        message
        for channel in channels
        for message in _messages(
            channel, [one for one in state.waiting if channel in routing[one.severity]], now
        )
    ]
    return replace(state, waiting=(), outbox=(*state.outbox, *messages))


def due_in_s(state: RunAlerts, now: float, *, group_s: float) -> float | None:
    """Seconds until something has to be sealed; None when nothing waits."""
    if not state.waiting:
        return None
    return max(0.0, min(one.t for one in state.waiting) + group_s - now)


def _messages(channel: str, entries: Sequence[Entry], now: float) -> list[Message]:
    groups = [[one] for one in entries] if channel in ONE_BY_ONE else [list(entries)]
    return [_message(channel, group, now) for group in groups if group]


def _message(channel: str, entries: Sequence[Entry], now: float) -> Message:
    text = "\0".join([channel, entries[0].run_id, *(one.key for one in entries)])
    key = hashlib.sha256(text.encode()).hexdigest()[:24]
    return Message(key, channel, tuple(entries), now)
