"""A message in words: subject, plain text, one line. Pure."""

from __future__ import annotations

from datetime import UTC, datetime

from monitor.alerts.model import Entry, Event, Message
from monitor.rules import Severity

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
