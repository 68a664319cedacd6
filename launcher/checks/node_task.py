"""One node's answer: a task on every node."""

from __future__ import annotations

import os
import sys
import time

from submitrain.launcher.checks.node_facts import Request, as_line
from submitrain.launcher.checks.node_measure import measure


def main() -> None:
    """Measure, say it on standard output, and leave at once: a thread may hang in the folder."""
    facts = measure(Request.parse(sys.argv[1]))
    sys.stdout.write(as_line(facts, time.time()))
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
