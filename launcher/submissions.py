"""submissions.jsonl: one line for every job of a run, by whom it was submitted, and with what.

A job that a supervisor submits because Slurm does not take the old one back continues it: budgets
are counted over such a chain.
"""

from __future__ import annotations

import getpass
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import Any

from launcher.record import via
from train.events import VERSION, Kind, append_line, read_events
from train.rundir import RunDir

SUPERVISOR = "supervisor"
"""``via`` of the lines that a supervisor writes, beside the client's own ways."""
_CLIENT_RANK = -1


def note_submission(run_dir: RunDir, cluster: str, job: Mapping[str, Any]) -> None:
    """Append one line; ``job`` has at least ``job_id`` and ``attempt``, the newest one before."""
    line = {
        "v": VERSION,
        "kind": str(Kind.SUBMITTED),
        "t": round(time.time(), 6),
        "rank": _CLIENT_RANK,
        "cluster": cluster,
        "user": _user(),
        "host": socket.gethostname(),
        "via": via(),
        **job,
    }
    append_line(run_dir.submissions, line)


def read_submissions(run_dir: RunDir) -> list[dict[str, Any]]:
    """All lines, the oldest first."""
    return list(read_events(run_dir.submissions))


def chain_of(lines: Iterable[Mapping[str, Any]], job_id: str) -> tuple[str, ...]:
    """This job and those that it continues by a supervisor's hand, the newest first."""
    by_id = {str(line.get("job_id")): line for line in lines}
    chain = [job_id]
    while (line := by_id.get(chain[-1])) is not None and line.get("via") == SUPERVISOR:
        before = str(line.get("after", ""))
        if not before or before in chain:
            break
        chain.append(before)
    return tuple(chain)


def recorded_parameters(lines: Iterable[Mapping[str, Any]]) -> dict[str, Any] | None:
    """sbatch parameters of the newest submission that has them."""
    found = [line["sbatch"] for line in lines if isinstance(line.get("sbatch"), Mapping)]
    return dict(found[-1]) if found else None


def adopt(run_dir: RunDir, job_id: str) -> None:
    """Write this job's line if its submitter, a supervisor, was killed before it could."""
    lines = read_submissions(run_dir)
    if not lines or any(str(line.get("job_id")) == job_id for line in lines):
        return
    last = lines[-1]
    job = {
        "job_id": job_id,
        "attempt": run_dir.newest_attempt(),
        "via": SUPERVISOR,
        "after": str(last.get("job_id")),
    }
    note_submission(run_dir, str(last.get("cluster")), job)


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a uid without a name, as in many containers
        return str(os.getuid())
