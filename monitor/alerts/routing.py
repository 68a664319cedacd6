"""Which channels hear of what, and what goes into one message. Pure.

A message in words: subject, plain text, one line. Pure.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime

from submitrain.config.alerts import AlertsConfig
from submitrain.monitor.alerts.state import Entry, Event, Message, RunAlerts
from submitrain.monitor.watch.snapshot import Severity

_WORD = {Event.FIRING: "", Event.REMINDER: "STILL ", Event.RESOLVED: "RESOLVED "}


def subject(message: Message) -> str:
    """``[submitrain] CRITICAL run-id: hang (+2)``"""
    first = min(message.entries, key=lambda one: list(Severity).index(one.severity))
    more = f" (+{len(message.entries) - 1})" if len(message.entries) > 1 else ""
    resolved = all(one.event is Event.RESOLVED for one in message.entries)
    word = "RESOLVED" if resolved else str(message.severity).upper()
    return f"[submitrain] {word} {first.run_id}: {_what(first)}{more}"


def body(message: Message, *, repeated: bool = False) -> str:
    """Plain text with every entry; ``repeated``: it may have arrived before."""
    lines = [text for entry in message.entries for text in [*entry_lines(entry), ""]]
    if repeated:
        lines.append("(sent again: it is not known whether this arrived before)")
    lines.append(f"message {message.key}")
    return "\n".join(lines)


def entry_lines(entry: Entry) -> list[str]:
    """One entry: what, evidence, what to do, since when."""
    lines = [f"{headline(entry)}", entry.text]
    if entry.next_step and entry.event is not Event.RESOLVED:
        lines.append(f"next: {entry.next_step}")
    if entry.event is not Event.FIRING:
        lines.append(f"since {moment(entry.since)}")
    return lines


def headline(entry: Entry) -> str:
    """``CRITICAL run-id: disk (space)``"""
    return f"{_WORD[entry.event]}{str(entry.severity).upper()} {entry.run_id}: {_what(entry)}"


def moment(t: float) -> str:
    """``2026-01-31 12:00:00 UTC``"""
    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _what(entry: Entry) -> str:
    return str(entry.rule) if entry.subject == "run" else f"{entry.rule} ({entry.subject})"


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
