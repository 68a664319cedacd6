"""Whether a requeued job that got a node back, which it had left, goes back once more."""

from __future__ import annotations

from typing import Any

import pytest

from submitrain.attempts import attempts_of
from submitrain.launcher.supervisor.placement import ExcludedNodes


def start(attempt: int, restarts: int, job: str = "7") -> dict[str, Any]:
    return {
        "kind": "attempt_start",
        "attempt": attempt,
        "job_id": job,
        "restart_count": restarts,
    }


def end(attempt: int, action: str, *excluded: str, job: str = "7") -> dict[str, Any]:
    line = {"kind": "attempt_end", "attempt": attempt, "job_id": job, "action": action}
    return {**line, "nodes_excluded": list(excluded)} if excluded else line


LEFT: dict[str, tuple[list[dict[str, Any]], ExcludedNodes]] = {
    "nothing yet": ([], ExcludedNodes()),
    "a requeue without a node": ([start(1, 0), end(1, "requeue", "n2")], ExcludedNodes(("n2",), 0)),
    "after two restarts": (
        [start(3, 2), end(3, "requeue", "n2", "n3")],
        ExcludedNodes(("n2", "n3"), 2),
    ),
    "a requeue that was refused": (
        [start(1, 0), end(1, "requeue", "n2"), end(1, "stop", "n2")],
        ExcludedNodes((), 0),
    ),
    "a restart in place": ([start(1, 0), end(1, "restart", "n2")], ExcludedNodes((), 0)),
    "an attempt since then": ([start(1, 0), end(1, "requeue", "n2"), start(2, 1)], ExcludedNodes()),
    "another job": ([start(1, 0, "6"), end(1, "requeue", "n2", job="6")], ExcludedNodes()),
    "a new job's first": (
        [start(1, 3, "6"), end(1, "resubmit", "n2", job="6"), start(2, 0), end(2, "requeue")],
        ExcludedNodes((), 0),
    ),
}


@pytest.mark.parametrize("name", LEFT)
def test_what_a_job_left_is_what_its_last_attempt_excluded(name: str) -> None:
    events, expected = LEFT[name]
    assert ExcludedNodes.last(attempts_of(events), "7") == expected


@pytest.mark.parametrize(
    ("excludable", "granted", "restarts", "expected"),
    [
        (("n2",), ("n1", "n2"), 1, True),
        (("n2",), ("n1", "n3"), 1, False),  # Slurm heeded it
        (("n2",), ("n1", "n2"), 2, False),  # it went back once more already
        (("n2",), ("n1", "n2"), 0, False),  # Slurm has not restarted the job since
        ((), ("n1", "n2"), 1, False),  # too few nodes are left without it
        (("n4",), ("n1", "n2"), 1, False),
    ],
)
def test_a_job_goes_back_once_more_if_that_helps(
    excludable: tuple[str, ...], granted: tuple[str, ...], restarts: int, expected: bool
) -> None:
    assert ExcludedNodes(("n2",), 0).helps_again(excludable, granted, restarts) is expected
