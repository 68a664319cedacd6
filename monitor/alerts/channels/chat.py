"""Slack's incoming webhook, and whatever apprise knows; neither drops what comes twice."""

from __future__ import annotations

import importlib
import json
from typing import Any

from monitor.alerts.channels.errors import DeliveryError
from monitor.alerts.channels.http import post
from monitor.alerts.model import Event, Message
from monitor.alerts.settings import Settings
from monitor.alerts.text import body, entry_lines, subject
from monitor.rules import Severity

_MARK = {Severity.CRITICAL: ":red_circle:", Severity.WARNING: ":large_yellow_circle:"}
_APPRISE_TYPE = {Severity.CRITICAL: "failure", Severity.WARNING: "warning", Severity.INFO: "info"}


def send_slack(message: Message, settings: Settings, repeated: bool) -> str:
    """POST to the webhook of a channel."""
    payload = {"text": slack_text(message, repeated=repeated)}
    post(
        settings.value("slack_webhook"),
        json.dumps(payload).encode(),
        {"Content-Type": "application/json"},
    )
    return ""


def slack_text(message: Message, *, repeated: bool = False) -> str:
    """The message in Slack's mrkdwn; its three control characters are escaped (Slack's docs)."""
    blocks = []
    for entry in message.entries:
        head, *lines = (_escaped(line) for line in entry_lines(entry))
        resolved = entry.event is Event.RESOLVED
        mark = ":large_green_circle:" if resolved else _MARK.get(entry.severity, ":white_circle:")
        blocks.append("\n".join([f"{mark} *{head}*", *lines]))
    if repeated:
        blocks.append("_sent again: it is not known whether this arrived before_")
    return "\n\n".join(blocks)


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def send_apprise(message: Message, settings: Settings, repeated: bool) -> str:
    """Through the apprise package."""
    apprise = load_apprise()
    sender = apprise.Apprise()
    for url in settings.value("apprise_url").replace(" ", ",").split(","):
        if url and not sender.add(url):
            raise DeliveryError("apprise: one of the URLs in alerts.apprise_url is none it knows")
    sent = sender.notify(
        title=subject(message),
        body=body(message, repeated=repeated),
        notify_type=_APPRISE_TYPE[message.severity],
    )
    if not sent:
        raise DeliveryError("apprise: at least one of its services did not take it", uncertain=True)
    return ""


def load_apprise() -> Any:
    """The apprise package.

    Raises:
        DeliveryError: it is not installed.
    """
    try:
        return importlib.import_module("apprise")
    except ImportError as error:
        raise DeliveryError(
            "alerts.apprise_url needs the apprise package: pip install 'submitrain[apprise]'"
        ) from error
