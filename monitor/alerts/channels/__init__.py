"""Ways to tell people: each takes a sealed message and returns, or says why it could not.

``send`` may be called again with the same message: channels that can tell drop it then (PagerDuty
by ``dedup_key``, mail by ``Message-ID``, the webhook by ``Idempotency-Key``); the others say so.
"""

from __future__ import annotations

from collections.abc import Callable

from monitor.alerts.channels.chat import send_apprise, send_slack
from monitor.alerts.channels.errors import DeliveryError
from monitor.alerts.channels.mail import send_mail
from monitor.alerts.channels.pagerduty import send_pagerduty
from monitor.alerts.channels.webhook import send_webhook
from monitor.alerts.model import Message
from monitor.alerts.settings import Settings

__all__ = ["CHANNELS", "DeliveryError", "Send"]

Send = Callable[[Message, Settings, bool], str]
"""Sends a message; the last argument: an earlier try may have arrived. Raises DeliveryError.

Returns what is worth noting about the delivery, usually nothing.
"""

CHANNELS: dict[str, Send] = {
    "slack": send_slack,
    "email": send_mail,
    "pagerduty": send_pagerduty,
    "webhook": send_webhook,
    "apprise": send_apprise,
}
