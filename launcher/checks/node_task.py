"""The preflight's task on one node: all its checks, one line of output. Standard library only."""

from __future__ import annotations

import os
import sys
import time

from submitrain.launcher.checks import node_software
from submitrain.launcher.checks.finding import Check, Finding, ok, run_checks
from submitrain.launcher.checks.node_folder import folder_checks
from submitrain.launcher.checks.node_gpu import gpu_checks
from submitrain.launcher.checks.node_request import NodeAnswer, NodeRequest
from submitrain.launcher.checks.node_system import system_checks

VERSIONS_S = 18.0


def check_node(request: NodeRequest) -> NodeAnswer:
    """Run all checks of this node."""
    versions: dict[str, str] = {}

    def read_versions() -> list[Finding]:
        versions.update(node_software.read_versions())
        return []  # the first node compares them

    checks = [*folder_checks(request), *system_checks(request), *gpu_checks(request)]
    if request.versions:
        checks.append(Check(node_software.ID, read_versions, VERSIONS_S))
    runs = ok("node.python", f"Python {sys.version.split()[0]} runs our code")
    return NodeAnswer((runs, *run_checks(checks)), time.time(), versions)


def main() -> None:
    """Answer on standard output, and leave at once: a thread may hang in the folder."""
    sys.stdout.write(check_node(NodeRequest.parse(sys.argv[1])).as_line())
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
