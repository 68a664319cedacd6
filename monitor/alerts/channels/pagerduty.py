"""PagerDuty Events API v2: one incident per alert, opened and resolved by ``dedup_key``."""

from __future__ import annotations

import json
import socket
from typing import Any

from monitor.alerts.channels.http import post
from monitor.alerts.model import Entry, Event, Message
from monitor.alerts.settings import Settings
from monitor.alerts.text import headline

_SUMMARY_LIMIT = 1024
"""PagerDuty refuses longer summaries."""


def send_pagerduty(message: Message, settings: Settings, repeated: bool) -> str:
    """Trigger or resolve; what comes twice changes nothing there."""
    key = settings.value("pagerduty_key")
    for entry in message.entries:
        payload = {"routing_key": key, **event_of(entry, socket.gethostname())}
        post(
            settings.alerts.pagerduty_url,
            json.dumps(payload).encode(),
            {"Content-Type": "application/json"},
        )
    return ""


def event_of(entry: Entry, host: str) -> dict[str, Any]:
    """The event, without the routing key."""
    resolved = entry.event is Event.RESOLVED
    event: dict[str, Any] = {
        "event_action": "resolve" if resolved else "trigger",
        "dedup_key": entry.fingerprint,
    }
    if not resolved:
        event["payload"] = {
            "summary": f"{headline(entry)}: {entry.text}"[:_SUMMARY_LIMIT],
            "source": host,
            "severity": str(entry.severity),
            "component": entry.run_id,
            "class": str(entry.rule),
            "custom_details": {"next_step": entry.next_step, "key": entry.key},
        }
    return event
