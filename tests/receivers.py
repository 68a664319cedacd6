"""Real receivers of alerts on loopback: an HTTP server and a mail server that remember."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import Message as Mail
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from aiosmtpd.controller import UnthreadedController
from aiosmtpd.smtp import SMTP, Envelope, Session


@dataclass(frozen=True)
class Request:
    """One request as it arrived."""

    method: str
    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class HttpReceiver:
    """Answers ``status`` (or, while there are any, those in ``script``), and remembers."""

    port: int = 0
    delay_s: float = 0.0
    """Seconds between taking a request and answering it."""
    status: int = 200
    script: list[int | str] = field(default_factory=list)
    """Next answers; ``drop`` takes the request and closes the connection without a word."""
    headers: dict[str, str] = field(default_factory=dict)
    requests: list[Request] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def take(self, request: Request) -> int | str:
        with self.lock:
            self.requests.append(request)
            return self.script.pop(0) if self.script else self.status


@contextmanager
def http_receiver(port: int = 0) -> Iterator[HttpReceiver]:
    """An HTTP server in a thread, on a free port or on ``port`` again."""
    receiver = HttpReceiver()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            headers = {name.lower(): value for name, value in self.headers.items()}
            answer = receiver.take(Request(self.command, self.path, headers, body))
            time.sleep(receiver.delay_s)
            if answer == "drop":
                self.close_connection = True
                return
            assert isinstance(answer, int)
            self.send_response(answer)
            for name, value in receiver.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", "2")
            self.end_headers()
            self.wfile.write(b"ok")

        do_GET = do_POST = answer  # noqa: N815 - http.server calls them so

        def log_message(self, format: str, *args: Any) -> None:
            pass

    ThreadingHTTPServer.allow_reuse_address = True
    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        receiver.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()


@dataclass
class SmtpReceiver:
    """Remembers the mails that it accepted; ``refuse`` receivers and ``fail`` with a code."""

    port: int = 0
    delay_s: float = 0.0
    """Seconds between taking a mail and saying so."""
    mails: list[Mail] = field(default_factory=list)
    refuse: set[str] = field(default_factory=set)
    script: list[str] = field(default_factory=list)
    """Next answers to a mail's data, such as ``451 later``."""

    async def handle_RCPT(
        self, server: SMTP, session: Session, envelope: Envelope, address: str, options: list[str]
    ) -> str:
        if address in self.refuse:
            return "550 no such user"
        envelope.rcpt_tos.append(address)
        return "250 OK"

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:
        if self.script:
            return self.script.pop(0)
        assert isinstance(envelope.content, bytes)
        self.mails.append(message_from_bytes(envelope.content))
        await asyncio.sleep(self.delay_s)
        return "250 taken"


@contextmanager
def smtp_receiver() -> Iterator[SmtpReceiver]:
    """A mail server (aiosmtpd) in a thread, on a free port."""
    receiver = SmtpReceiver()
    loop = asyncio.new_event_loop()
    controller = UnthreadedController(receiver, hostname="127.0.0.1", port=0, loop=loop)
    controller.begin()
    receiver.port = controller.server.sockets[0].getsockname()[1]
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield receiver
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        controller.end()
        loop.close()
