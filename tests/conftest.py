"""Fixtures that many tests share, and the honest last lines: what did not run, and why."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest
import structlog

from tests.cluster.fixtures import (
    make_cluster,
    report_not_run,
    report_repairs,
    session_cluster,
    slurm_cluster,
)

__all__ = ["make_cluster", "session_cluster", "slurm_cluster"]


def pytest_configure() -> None:
    """Give Ctrl-C its meaning back: a shell takes it from what it starts in the background.

    Programs that tests interrupt would inherit that they ignore it (sh(1), "asynchronous lists").
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _logs_of_its_own() -> Iterator[None]:
    """Undo what a command set: its loggers write to the captured output of the test that ran it."""
    yield
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that wait for Slurm first: with several workers nobody waits for them at the end."""
    of_slurm = {item.path for item in items if item.get_closest_marker("slurm")}
    items.sort(key=lambda item: item.path not in of_slurm)
    for item in items:
        if item.get_closest_marker("slurm") or item.get_closest_marker("ranks"):
            # Real processes on a machine that others use, too: the summary names every second try.
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was repaired and the tests that did not run for want of Slurm; never silent."""
    report_repairs(terminalreporter)
    report_not_run(terminalreporter)
