"""Ranks for ``tests.bench.exits`` by the hundred: forked from here, where the imports are done.

Reads one JSON object a line (``environment``, ``log``, ``control``), forks a process for each, and
answers with one line when both ranks of a run have ended: their exit codes. Every rank then runs
``launcher.rank`` from its first line to its last, in a process that had no thread before.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import tests.forked_imports  # noqa: F401
from launcher import rank
from launcher.rankrun import run_rank
from train.stop import StopFlag


def serve() -> None:
    """Fork until the input ends; in a forked process, be that rank."""
    for line in sys.stdin:
        children = []
        for order in json.loads(line):
            child = os.fork()
            if child == 0:
                be_rank(order)
                return
            children.append(child)
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        print(json.dumps(codes), flush=True)


def be_rank(order: dict[str, Any]) -> None:
    """Run a rank and leave as it leaves, or (control) by the interpreter's own exit."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT)
    nothing = os.open(os.devnull, os.O_RDONLY)
    for descriptor, stream in ((nothing, 0), (log, 1), (log, 2)):
        os.dup2(descriptor, stream)
    os.environ |= order["environment"]
    if order["control"]:
        sys.exit(run_rank(StopFlag()))
    rank.main()


if __name__ == "__main__":
    serve()
