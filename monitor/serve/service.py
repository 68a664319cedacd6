"""The endpoint: /metrics and /healthz, answered from what the newest look saw."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from socket import AF_INET6

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder

from submitrain.errors import UserError
from submitrain.monitor.serve.collector import Accounts, Exported, RunCollector
from submitrain.monitor.watch.fleet import Fleet

READ_LIMIT_S = 10.0
"""A client that says nothing for so long is left."""
_INDEX = b"submitrain\n\n/metrics  for Prometheus\n/healthz  200 while looks succeed\n"


class MetricsServer(ThreadingHTTPServer):
    """Answers from memory; ``health`` says what is wrong, "" for nothing."""

    daemon_threads = True

    def __init__(
        self, address: tuple[str, int], registry: CollectorRegistry, health: Callable[[], str]
    ) -> None:
        self.registry, self.health = registry, health
        if ":" in address[0]:
            self.address_family = AF_INET6
        super().__init__(address, _Handler)


def listen(
    bind: str, port: int, registry: CollectorRegistry, health: Callable[[], str]
) -> MetricsServer:
    """Open the port.

    Raises:
        UserError: it cannot be opened.
    """
    if not 0 <= port <= 65535:
        raise UserError(f"--port: expected 0 to 65535, got {port}")
    try:
        return MetricsServer((bind, port), registry, health)
    except OSError as error:
        raise UserError(
            f"--bind {bind} --port {port}: cannot listen there: {error.strerror or error}; choose "
            "another port (0: any free one), or an address of this machine"
        ) from error


class Health:
    """Whether the newest good look is recent enough."""

    def __init__(self, limit_s: float) -> None:
        self._limit_s = limit_s
        self._good_at: float | None = None
        self._problem = "no look yet"

    def good(self) -> None:
        """A look succeeded."""
        self._good_at, self._problem = time.monotonic(), ""

    def bad(self, problem: str) -> None:
        """A look failed."""
        self._problem = problem

    def __call__(self) -> str:
        """What is wrong if there was no good look, or none for too long; else nothing."""
        if self._good_at is None:
            return self._problem
        silent_s = time.monotonic() - self._good_at
        if silent_s <= self._limit_s:
            return ""
        return f"no good look for {silent_s:.0f} s: {self._problem or 'it hangs'}"


class _Handler(BaseHTTPRequestHandler):
    server: MetricsServer
    timeout = READ_LIMIT_S
    server_version = "submitrain"

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/metrics":
            encode, content_type = choose_encoder(self.headers.get("Accept", ""))
            self._answer(HTTPStatus.OK, encode(self.server.registry), content_type)
        elif path == "/healthz":
            problem = self.server.health()
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


SILENT_LOOKS = 3
GRACE_S = 60.0
"""/healthz fails after so many intervals, and so many seconds, without a good look."""


class Service:
    """One endpoint for all runs of a fleet; a scrape neither reads files nor asks anybody."""

    def __init__(self, fleet: Fleet, *, interval_s: float) -> None:
        self._fleet, self._accounts = fleet, Accounts()
        self._collector = RunCollector()
        self._registry = CollectorRegistry()
        self._registry.register(self._collector)
        ProcessCollector(registry=self._registry)
        self._server: MetricsServer | None = None
        self._health = Health(SILENT_LOOKS * interval_s + GRACE_S)

    def listen(self, bind: str, port: int) -> str:
        """Answer from now on; returns the URL.

        Raises:
            UserError: the port cannot be opened.
        """
        self._server = server = listen(bind, port, self._registry, self._health)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        host, port = str(server.server_address[0]), int(server.server_address[1])
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    def close(self) -> None:
        """Answer no more."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()

    def look(self) -> str:
        """Look once; returns what is wrong, "" for nothing."""
        last = self._collector.exported
        looks = last.looks + 1
        try:
            view = self._fleet.poll()
            accounts = self._accounts.update([one.status for one in view.runs])
        except (OSError, UserError) as error:
            problem = f"runs cannot be read: {error}; trying again"
            self._health.bad(problem)
            failed = last.failed_looks + 1
            self._collector.exported = Exported(last.fleet, last.accounts, looks, failed)
            return problem
        self._collector.exported = Exported(view, accounts, looks, last.failed_looks)
        self._health.good()
        return "; ".join(f"{run}: {text}" for run, text in view.problems.items())
