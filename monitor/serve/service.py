"""The endpoint: /metrics and /healthz, answered from what the newest poll saw."""

from __future__ import annotations

import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from submitrain.errors import UserError
from submitrain.monitor.serve.collector import Accounts, Exported, RunCollector
from submitrain.monitor.watch.fleet import Fleet

SILENT_POLLS = 3
GRACE_S = 60.0
"""/healthz fails after so many intervals, and so many seconds, without a good poll."""
READ_LIMIT_S = 10.0
"""A client that says nothing for so long is left."""
_INDEX = b"submitrain\n\n/metrics  for Prometheus\n/healthz  200 while polls succeed\n"


class Service:
    """One endpoint for all runs of a fleet; a scrape neither reads files nor asks anybody."""

    def __init__(self, fleet: Fleet, *, interval_s: float) -> None:
        self._fleet, self._accounts = fleet, Accounts()
        self._collector = RunCollector()
        self.registry = CollectorRegistry()
        self.registry.register(self._collector)
        ProcessCollector(registry=self.registry)
        self._server: _Server | None = None
        self._limit_s = SILENT_POLLS * interval_s + GRACE_S
        self._good_at: float | None = None
        self._problem = "no poll yet"

    def listen(self, bind: str, port: int) -> str:
        """Answer from now on; returns the URL.

        Raises:
            UserError: the port cannot be opened.
        """
        if not 0 <= port <= 65535:
            raise UserError(f"--port: expected 0 to 65535, got {port}")
        try:
            self._server = server = _Server((bind, port), self)
        except OSError as error:
            raise UserError(
                f"--bind {bind} --port {port}: cannot listen there: {error.strerror or error}; "
                "choose another port (0: any free one), or an address of this machine"
            ) from error
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = str(server.server_address[0]), int(server.server_address[1])
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def poll(self) -> str:
        """Poll once; returns what is wrong, "" for nothing."""
        last = self._collector.exported
        polls = last.polls + 1
        try:
            view = self._fleet.poll()
            accounts = self._accounts.update([one.status for one in view.runs])
        except (OSError, UserError) as error:
            self._problem = f"runs cannot be read: {error}; trying again"
            failed = last.failed_polls + 1
            self._collector.exported = Exported(last.fleet, last.accounts, polls, failed)
            return self._problem
        self._collector.exported = Exported(view, accounts, polls, last.failed_polls)
        self._good_at, self._problem = time.monotonic(), ""
        return "; ".join(f"{run}: {text}" for run, text in view.problems.items())

    def health(self) -> str:
        """What is wrong if there was no good poll, or none for too long; else nothing."""
        if self._good_at is None:
            return self._problem
        silent_s = time.monotonic() - self._good_at
        if silent_s <= self._limit_s:
            return ""
        return f"no good poll for {silent_s:.0f} s: {self._problem or 'it hangs'}"


class _Server(ThreadingHTTPServer):
    """Answers from memory."""

    daemon_threads = True

    def __init__(self, address: tuple[str, int], service: Service) -> None:
        self.service = service
        if ":" in address[0]:
            self.address_family = AF_INET6
        super().__init__(address, _Handler)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = READ_LIMIT_S
    server_version = "submitrain"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.server.service.registry), content_type)
        elif path == "/healthz":
            problem = self.server.service.health()
            code = HTTPStatus.SERVICE_UNAVAILABLE if problem else HTTPStatus.OK
            self._answer(code, f"{problem or 'ok'}\n".encode())
        elif path == "/":
            self._answer(HTTPStatus.OK, _INDEX)
        else:
            self._answer(HTTPStatus.NOT_FOUND, _INDEX)

    def _answer(
        self, code: HTTPStatus, body: bytes, content_type: str = "text/plain; charset=utf-8"
    ) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Scrapes are no news."""
