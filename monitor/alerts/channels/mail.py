"""Mail over SMTP; every try of a message has the same Message-ID, by which servers drop doubles."""

from __future__ import annotations

import smtplib
import socket
import ssl
from email.message import EmailMessage
from email.utils import formatdate

from monitor.alerts.channels.errors import DeliveryError
from monitor.alerts.model import Message
from monitor.alerts.settings import Settings
from monitor.alerts.text import body, subject
from monitor.rules import Severity

TIMEOUT_S = 15.0
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
    port = _port(settings)
    security = settings.alerts.smtp_security
    if security == "tls" or (security == "auto" and port == _TLS_PORT):
        context = ssl.create_default_context()
        return smtplib.SMTP_SSL(host, port, timeout=TIMEOUT_S, context=context)
    server = smtplib.SMTP(host, port, timeout=TIMEOUT_S)
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


def _port(settings: Settings) -> int:
    if settings.alerts.smtp_port is not None:
        return settings.alerts.smtp_port
    text = settings.environ.get("SMTP_PORT", "25")
    if not text.isdigit():
        raise DeliveryError(f"SMTP_PORT: expected a number, got {text!r}")
    return int(text)
