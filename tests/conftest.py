"""Fixtures that many tests share, and the honest last lines: what did not run, and why."""

from __future__ import annotations

import pytest

from tests.slurm.fixtures import make_cluster, report_not_run, slurm_cluster

__all__ = ["make_cluster", "slurm_cluster"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the tests that did not run for want of Slurm; never silently green."""
    report_not_run(terminalreporter)
