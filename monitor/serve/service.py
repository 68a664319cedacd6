"""Looks, and answers scrapes from what the newest look saw."""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, ProcessCollector

from monitor.fleet import Fleet
from monitor.serve.accounts import Accounts
from monitor.serve.collector import Exported, RunCollector
from monitor.serve.http import Health, MetricsServer, listen
from train.errors import UserError

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
            view = self._fleet.look()
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
