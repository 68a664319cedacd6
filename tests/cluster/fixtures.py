"""Pytest fixtures with real Slurm clusters, and the report of what could not run without one.

A `conftest.py` imports the fixtures, and calls `report_not_run` in `pytest_terminal_summary`:

    from tests.cluster.fixtures import make_cluster, report_not_run, session_cluster, slurm_cluster

    def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
        report_not_run(terminalreporter)
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest

from tests.cluster.cluster import SlurmCluster
from tests.cluster.daemon import SlurmClusterError
from tests.cluster.options import ClusterOptions, install_hint, missing_packages

REQUIRE_VARIABLE = "SUBMITRAIN_REQUIRE_SLURM"
"""Set to 1, tests that need Slurm fail where it is missing; CI sets it."""

_IDLE_WITHIN_S = 30
_REPAIRED = "slurm_cluster_repaired"
_REASON_PREFIX = "needs a real Slurm: "

ClusterFactory = Callable[[ClusterOptions], SlurmCluster]


def require_slurm(options: ClusterOptions) -> None:
    """Skip the test, with the command that helps, where such a cluster cannot start.

    The reason ends up in `not_run_lines`, so that nobody takes a skipped test for a passed one.
    """
    packages = missing_packages(options)
    if not packages:
        return
    reason = f"{_REASON_PREFIX}{install_hint(packages)}"
    if os.environ.get(REQUIRE_VARIABLE) == "1":
        pytest.fail(f"{reason} ({REQUIRE_VARIABLE}=1 forbids to skip)", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def session_cluster() -> Iterator[SlurmCluster]:
    """The cluster behind `slurm_cluster`, started once."""
    options = ClusterOptions(preempt_notice_s=20)
    require_slurm(options)
    with SlurmCluster.start(options) as cluster:
        yield cluster


@pytest.fixture
def slurm_cluster(
    session_cluster: SlurmCluster, record_property: Callable[[str, object], None]
) -> SlurmCluster:
    """One cluster for the whole session: 4 nodes, accounting, preemption with 20 s of notice.

    Every test gets it with all nodes idle: what the one before left is cancelled, and a node that
    Slurm took out of service meanwhile is brought back and named in the summary. A test that breaks
    daemons takes `make_cluster`, or calls `slurm_cluster.restore()` at its end.
    """
    session_cluster.cancel_all()
    try:
        session_cluster.wait_idle(timeout_s=_IDLE_WITHIN_S)
    except SlurmClusterError:
        reasons = session_cluster.run("sinfo", "--list-reasons", "--format=%n %T: %E", check=False)
        record_property(_REPAIRED, reasons.strip() or str(session_cluster.node_states()))
        session_cluster.restore()
    return session_cluster


@pytest.fixture
def make_cluster() -> Iterator[ClusterFactory]:
    """Start clusters of any shape, for one test; they stop when it ends."""
    started: list[SlurmCluster] = []

    def make(options: ClusterOptions) -> SlurmCluster:
        require_slurm(options)
        started.append(SlurmCluster.start(options))
        return started[-1]

    yield make
    for cluster in reversed(started):
        cluster.stop()


def not_run_lines(skipped: list[pytest.TestReport]) -> list[str]:
    """Return what to print about the tests that did not run for want of Slurm; empty if none."""
    reasons: dict[str, list[str]] = {}
    for report in skipped:
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else ""
        _, found, command = text.partition(_REASON_PREFIX)
        if found:
            reasons.setdefault(command, []).append(report.nodeid)
    lines = []
    for command, tests in reasons.items():
        lines.append(f"{len(tests)} tests did NOT run, because they need a real Slurm:")
        lines += [f"    {name}" for name in tests]
        lines.append(f"To run them: {command}")
    return lines


def report_repairs(reporter: pytest.TerminalReporter) -> None:
    """Print where the session's cluster was found broken; for `pytest_terminal_summary`."""
    for reports in reporter.stats.values():
        for report in reports:
            for name, reasons in getattr(report, "user_properties", ()):
                if name == _REPAIRED and report.when == "call":
                    reporter.line(f"cluster repaired before {report.nodeid}: {reasons}")


def report_not_run(reporter: pytest.TerminalReporter) -> None:
    """Print `not_run_lines` at the end of the session; for `pytest_terminal_summary`."""
    lines = not_run_lines(reporter.stats.get("skipped", []))
    if lines:
        reporter.section("not run", yellow=True)
        for line in lines:
            reporter.line(line)
