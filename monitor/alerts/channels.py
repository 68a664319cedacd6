"""The channels of alerts: Slack, mail, PagerDuty, webhook, apprise.

Each takes a sealed message and returns, or raises ``DeliveryError``. It may be called again with
the same message: channels that can tell drop it then (PagerDuty by ``dedup_key``, mail by
``Message-ID``, the webhook by ``Idempotency-Key``); Slack and apprise say that it is a repetition.
"""

from __future__ import annotations

import hashlib
import hmac
import html
import http.client
import importlib
import json
import smtplib
import socket
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from email.message import EmailMessage
from email.utils import formatdate
from typing import Any
from urllib.parse import urlsplit

from submitrain.monitor.alerts.rules import Severity
from submitrain.monitor.alerts.settings import Settings
from submitrain.monitor.alerts.state import Message, Notice, Transition


class DeliveryError(Exception):
    """A channel did not take a message. ``transient``: worth another try at once.

    ``uncertain``: it may have arrived nevertheless. ``retry_after_s``: the receiver's wish.
    """

    def __init__(
        self,
        text: str,
        *,
        transient: bool = False,
        uncertain: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.transient = transient
        self.uncertain = uncertain
        self.retry_after_s = retry_after_s


_PREFIX = {Transition.FIRING: "", Transition.REMINDER: "STILL ", Transition.RESOLVED: "RESOLVED "}


def subject(message: Message) -> str:
    """``[submitrain] CRITICAL run-id: hang (+2)``"""
    first = min(message.entries, key=lambda one: list(Severity).index(one.severity))
    more = f" (+{len(message.entries) - 1})" if len(message.entries) > 1 else ""
    resolved = all(one.event is Transition.RESOLVED for one in message.entries)
    word = "RESOLVED" if resolved else str(message.severity).upper()
    return f"[submitrain] {word} {first.run_id}: {_what(first)}{more}"


def body(message: Message, *, repeated: bool = False) -> str:
    """Plain text with every notice; ``repeated``: it may have arrived before."""
    lines = [text for notice in message.entries for text in [*notice_lines(notice), ""]]
    if repeated:
        lines.append("(sent again: it is not known whether this arrived before)")
    lines.append(f"message {message.key}")
    return "\n".join(lines)


def notice_lines(notice: Notice) -> list[str]:
    """One notice: what, evidence, what to do, since when."""
    lines = [headline(notice), notice.text]
    if notice.next_step and notice.event is not Transition.RESOLVED:
        lines.append(f"next: {notice.next_step}")
    if notice.event is not Transition.FIRING:
        lines.append(f"since {moment(notice.since)}")
    return lines


def headline(notice: Notice) -> str:
    """``CRITICAL run-id: disk (space)``"""
    severity = str(notice.severity).upper()
    return f"{_PREFIX[notice.event]}{severity} {notice.run_id}: {_what(notice)}"


def moment(t: float) -> str:
    """``2026-01-31 12:00:00 UTC``"""
    return datetime.fromtimestamp(t, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _what(notice: Notice) -> str:
    return str(notice.rule) if notice.subject == "run" else f"{notice.rule} ({notice.subject})"


TIMEOUT_S = 10.0
_AGENT = "submitrain-monitor"
_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 that pass: time-out, conflict, too early, too many requests (RFC 9110)."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would follow a redirected POST by a GET without the message, and call that success."""

    def redirect_request(self, *arguments: object, **more: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def post_json(url: str, value: object) -> None:
    """POST a value as JSON; raises like ``request``."""
    request(url, json.dumps(value).encode(), {"Content-Type": "application/json"})


def request(url: str, data: bytes | None = None, headers: Mapping[str, str] | None = None) -> None:
    """POST ``data``, or GET without it; returns when the receiver took it (2xx).

    Raises:
        DeliveryError: it did not, or nobody knows; it tells whether a retry helps.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DeliveryError("expected a URL of http or https, got something else (not shown)")
    where = parts.netloc.rpartition("@")[2]
    full = urllib.request.Request(url, data, {"User-Agent": _AGENT, **(headers or {})})
    try:
        with _OPENER.open(full, timeout=TIMEOUT_S) as answer:
            answer.read(4096)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(200).decode(errors="replace").strip()
            wait = error.headers.get("Retry-After")
        raise DeliveryError(
            f"{where} answered {error.code} {said}".strip(),
            transient=error.code >= 500 or error.code in _AGAIN,
            retry_after_s=float(wait) if wait and wait.isdigit() else None,
        ) from error
    except urllib.error.URLError as error:
        # urllib wraps what happens before the request is out: nothing has arrived.
        raise DeliveryError(f"{where}: {error.reason}", transient=True) from error
    except (OSError, http.client.HTTPException) as error:
        # The request was out, and the answer did not come: it may have been taken.
        raise DeliveryError(
            f"{where} did not answer: {type(error).__name__}", transient=True, uncertain=True
        ) from error


_MARK = {Severity.CRITICAL: ":red_circle:", Severity.WARNING: ":large_yellow_circle:"}
_APPRISE_TYPE = {Severity.CRITICAL: "failure", Severity.WARNING: "warning", Severity.INFO: "info"}


def send_slack(message: Message, settings: Settings, repeated: bool) -> str:
    """POST to the webhook of a channel."""
    post_json(settings.value("slack_webhook"), {"text": slack_text(message, repeated=repeated)})
    return ""


def slack_text(message: Message, *, repeated: bool = False) -> str:
    """The message in Slack's mrkdwn; its three control characters are escaped (Slack's docs)."""
    blocks = []
    for notice in message.entries:
        head, *lines = (html.escape(line, quote=False) for line in notice_lines(notice))
        resolved = notice.event is Transition.RESOLVED
        mark = ":large_green_circle:" if resolved else _MARK.get(notice.severity, ":white_circle:")
        blocks.append("\n".join([f"{mark} *{head}*", *lines]))
    if repeated:
        blocks.append("_sent again: it is not known whether this arrived before_")
    return "\n\n".join(blocks)


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


SMTP_TIMEOUT_S = 15.0
_TLS_PORT = 465
_THIS_MACHINE = frozenset({"localhost", "127.0.0.1", "::1"})


def send_mail(message: Message, settings: Settings, repeated: bool) -> str:
    """Hand the message to the mail server for all receivers."""
    mail = mail_of(message, settings)
    handed_over = False
    try:
        with _connection(settings) as server:
            user = settings.value("smtp_user", "SMTP_USER")
            if user:
                server.login(user, settings.value("smtp_password", "SMTP_PASSWORD"))
            handed_over = True
            refused = server.send_message(mail)
            handed_over = False
    except smtplib.SMTPResponseException as error:
        said = error.smtp_error
        said = said.decode(errors="replace") if isinstance(said, bytes) else said
        transient = 400 <= error.smtp_code < 500
        raise DeliveryError(f"SMTP {error.smtp_code} {said}", transient=transient) from error
    except smtplib.SMTPRecipientsRefused as error:
        raise DeliveryError(f"SMTP: refused receivers {', '.join(error.recipients)}") from error
    except (OSError, smtplib.SMTPException) as error:
        raise DeliveryError(
            f"SMTP: {type(error).__name__}: {error}", transient=True, uncertain=handed_over
        ) from error
    # The others have it: a retry would send it to them again.
    return f"refused receivers: {', '.join(refused)}" if refused else ""


def mail_of(message: Message, settings: Settings) -> EmailMessage:
    """The mail itself."""
    host = socket.getfqdn()
    mail = EmailMessage()
    mail["Subject"] = subject(message)
    mail["From"] = settings.value("email_from") or f"submitrain@{host}"
    mail["To"] = settings.value("email_to", "EMAIL_ALERTS")
    mail["Date"] = formatdate(message.created_at)
    mail["Message-ID"] = f"<{message.key}.{message.entries[0].run_id}@submitrain>"
    mail["Auto-Submitted"] = "auto-generated"
    if message.severity is Severity.CRITICAL:
        mail["X-Priority"] = "1"
    mail.set_content(body(message))
    return mail


def _connection(settings: Settings) -> smtplib.SMTP:
    host = settings.value("smtp_host", "SMTP_HOST") or "localhost"
    port = settings.alerts.smtp_port
    if port is None:
        text = settings.environ.get("SMTP_PORT", "25")
        if not text.isdigit():
            raise DeliveryError(f"SMTP_PORT: expected a number, got {text!r}")
        port = int(text)
    security = settings.alerts.smtp_security
    if security == "tls" or (security == "auto" and port == _TLS_PORT):
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(host, port, timeout=SMTP_TIMEOUT_S, context=context)
    server = smtplib.SMTP(host, port, timeout=SMTP_TIMEOUT_S)
    try:
        server.ehlo_or_helo_if_needed()
        # A server on this machine rarely has a certificate for its name, and needs none.
        offered = host not in _THIS_MACHINE and server.has_extn("starttls")
        if security == "starttls" or (security == "auto" and offered):
            server.starttls(context=ssl.create_default_context())
    except BaseException:
        server.close()
        raise
    return server


_SUMMARY_LIMIT = 1024
"""PagerDuty refuses longer summaries."""


def send_pagerduty(message: Message, settings: Settings, repeated: bool) -> str:
    """Trigger or resolve; what comes twice changes nothing there."""
    key = settings.value("pagerduty_key")
    for notice in message.entries:
        event = {"routing_key": key, **event_of(notice, socket.gethostname())}
        post_json(settings.alerts.pagerduty_url, event)
    return ""


def event_of(notice: Notice, host: str) -> dict[str, Any]:
    """The event, without the routing key."""
    resolved = notice.event is Transition.RESOLVED
    event: dict[str, Any] = {
        "event_action": "resolve" if resolved else "trigger",
        "dedup_key": notice.fingerprint,
    }
    if not resolved:
        event["payload"] = {
            "summary": f"{headline(notice)}: {notice.text}"[:_SUMMARY_LIMIT],
            "source": host,
            "severity": str(notice.severity),
            "component": notice.run_id,
            "class": str(notice.rule),
            "custom_details": {"next_step": notice.next_step, "key": notice.key},
        }
    return event


TIMESTAMP, SIGNATURE = "X-Submitrain-Timestamp", "X-Submitrain-Signature"


def send_webhook(message: Message, settings: Settings, repeated: bool) -> str:
    """POST the message."""
    content = asdict(message) | {"v": 1, "repeated": repeated}
    body = json.dumps(content, sort_keys=True).encode()
    headers = {"Content-Type": "application/json", "Idempotency-Key": message.key}
    secret = settings.value("webhook_secret")
    if secret:
        timestamp = str(int(time.time()))
        headers |= {TIMESTAMP: timestamp, SIGNATURE: signature(secret, timestamp, body)}
    request(settings.value("webhook_url"), body, headers)
    return ""


def signature(secret: str, timestamp: str, body: bytes) -> str:
    """``sha256=`` and the HMAC-SHA256 of ``timestamp.body`` in hex."""
    digest = hmac.new(secret.encode(), timestamp.encode() + b"." + body, hashlib.sha256)
    return f"sha256={digest.hexdigest()}"


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
