"""One HTTP request with a time limit; what went wrong is sorted by whether a retry helps."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections.abc import Mapping
from urllib.parse import urlsplit

from monitor.alerts.channels.errors import DeliveryError

TIMEOUT_S = 10.0
_AGENT = "submitrain-monitor"
_AGAIN = frozenset({408, 409, 425, 429})
"""Statuses below 500 that pass: time-out, conflict, too early, too many requests (RFC 9110)."""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """urllib would follow a redirected POST by a GET without the message, and call that success."""

    def redirect_request(self, *arguments: object, **more: object) -> None:
        return None


_OPENER = urllib.request.build_opener(_NoRedirect)


def post(url: str, body: bytes, headers: Mapping[str, str]) -> None:
    """POST; returns when the receiver took it (2xx).

    Raises:
        DeliveryError: it did not, or nobody knows.
    """
    fetch(urllib.request.Request(_checked(url), data=body, headers=dict(headers), method="POST"))


def get(url: str) -> None:
    """GET, for a ping; raises like ``post``."""
    fetch(urllib.request.Request(_checked(url), method="GET"))


def fetch(request: urllib.request.Request) -> None:
    """Do it, and sort what goes wrong."""
    request.add_header("User-Agent", _AGENT)
    where = urlsplit(request.full_url).netloc.rpartition("@")[2]
    try:
        with _OPENER.open(request, timeout=TIMEOUT_S) as answer:
            answer.read(4096)
    except urllib.error.HTTPError as error:
        with error:
            said = error.read(200).decode(errors="replace").strip()
        raise DeliveryError(
            f"{where} answered {error.code} {said}".strip(),
            transient=error.code >= 500 or error.code in _AGAIN,
            retry_after_s=_seconds(error.headers.get("Retry-After")),
        ) from error
    except urllib.error.URLError as error:
        # urllib wraps what happens before the request is out: nothing has arrived.
        raise DeliveryError(f"{where}: {error.reason}", transient=True) from error
    except (OSError, http.client.HTTPException) as error:
        # The request was out, and the answer did not come: it may have been taken.
        raise DeliveryError(
            f"{where} did not answer: {type(error).__name__}", transient=True, uncertain=True
        ) from error


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise DeliveryError("expected a URL of http or https, got something else (not shown)")
    return url


def _seconds(text: str | None) -> float | None:
    return float(text) if text and text.isdigit() else None
