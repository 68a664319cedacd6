"""A webhook of the user's own: JSON with an HMAC-SHA256 signature over time and body.

``X-Submitrain-Signature: sha256=<hex>`` is the HMAC of ``<timestamp>.<body>``; a receiver that also
looks at the timestamp's age cannot be fooled by a replay, and one that remembers
``Idempotency-Key`` gets nothing twice.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import time

from monitor.alerts.channels.http import post
from monitor.alerts.model import Message
from monitor.alerts.settings import Settings

TIMESTAMP, SIGNATURE = "X-Submitrain-Timestamp", "X-Submitrain-Signature"


def send_webhook(message: Message, settings: Settings, repeated: bool) -> str:
    """POST the message."""
    content = message.as_json() | {"v": 1, "repeated": repeated}
    body = json.dumps(content, sort_keys=True).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": message.key}
    secret = settings.value("webhook_secret")
    if secret:
        timestamp = str(int(time.time()))
        headers |= {TIMESTAMP: timestamp, SIGNATURE: signature(secret, timestamp, body)}
    post(settings.value("webhook_url"), body, headers)
    return ""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """``sha256=`` and the HMAC-SHA256 of ``timestamp.body`` in hex."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"
