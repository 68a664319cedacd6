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


LONGEST = (
    "test_fault_matrix", "test_survive_slurm", "test_supervise_slurm", "test_nodes_slurm",
    "test_survive_local", "test_train_step", "test_drill_local", "test_hang_local", "test_docs_run",
    "test_supervise_local", "test_hang_train", "test_launch", "test_sweep_local", "test_notebooks",
    "test_resubmit_slurm", "test_fencing_slurm", "test_own_code_slurm", "test_anomaly_runs",
    "test_fencing_saves", "test_faults_ranks", "test_watch", "test_survive_nodes_slurm",
    "test_assess_slurm", "test_drill_slurm", "test_preflight_slurm", "test_hang_slurm",
)  # fmt: skip
"""Files of more than a minute, the longest first: nobody waits for them at the end."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long files first, then those that wait for Slurm, then the others."""
    of_slurm = {item.path for item in items if item.get_closest_marker("slurm")}
    place = {name: number for number, name in enumerate(LONGEST, start=-len(LONGEST))}
    items.sort(key=lambda item: place.get(item.path.stem, item.path not in of_slurm))
    for item in items:
        if item.get_closest_marker("slurm") or item.get_closest_marker("ranks"):
            # Real processes on a machine that others use, too: the summary names every second try.
            item.add_marker(pytest.mark.flaky(reruns=1))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name what was repaired and the tests that did not run for want of Slurm; never silent."""
    report_repairs(terminalreporter)
    report_not_run(terminalreporter)
