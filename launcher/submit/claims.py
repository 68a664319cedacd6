"""Who may submit a run, by whom it was, and which supervisor it belongs to.

A claim is a numbered folder, ``submissions/003``, made with mkdir: of all clients, on all hosts,
one makes it. Claims are never deleted or reused, so a dead client's claim cannot be taken over by
two at once: the next number is claimed instead. While a client holds a claim it touches it, and it
ends it with ``ended.json``: the job it submitted, or none.

The job carries its claim's number. A supervisor whose claim is older than one by which a job was
submitted is superseded, whenever it starts or thaws.

``submissions.jsonl`` has one line for every job of a run: by whom it was submitted, and with what.
A job that a supervisor submits because Slurm does not take the old one back continues it: budgets
are counted over such a chain.
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt
from submitrain.errors import UserError
from submitrain.events import VERSION, Kind, append_line, read_events
from submitrain.launcher.submit.record import user_name, via
from submitrain.processes import ProcessRef
from submitrain.run_folder import RunDir, write_json_atomically

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
        "user": user_name(),
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


CLAIM_VARIABLE = "SUBMITRAIN_SUBMISSION"
TOUCH_EVERY_S = 5.0
DEAD_AFTER_S = 60.0
"""A claim that nobody touched for so long, by the file system's clock, belongs to a dead client."""


@dataclass
class Claim:
    """A client's right to submit a run; ``job_id`` is set once a job was submitted by it."""

    folder: Path
    job_id: str | None = None
    _done: threading.Event = field(default_factory=threading.Event)

    @property
    def number(self) -> int:
        """Position among the run's submissions."""
        return int(self.folder.name)

    def touch(self) -> None:
        """Show that the holder lives, until the claim has ended; a thread does this."""
        while not self._done.wait(TOUCH_EVERY_S):
            with suppress(OSError):
                os.utime(self.folder)

    def end(self) -> None:
        """Let others claim from now on."""
        self._done.set()
        with suppress(OSError):  # then it ends DEAD_AFTER_S from now
            write_json_atomically(self.folder / "ended.json", {"job_id": self.job_id})


@dataclass(frozen=True)
class ClaimState:
    """What the run folder says of one claim."""

    number: int
    ended: bool
    job_id: str | None
    holder: dict[str, Any]
    silent_s: float

    @property
    def held(self) -> bool:
        """Whether its client may still submit."""
        if self.ended:
            return False
        process = ProcessRef.from_json(self.holder.get("process"))
        alive = process.alive() if process is not None else None
        return self.silent_s < DEAD_AFTER_S if alive is None else alive


@contextmanager
def claim_submission(run_dir: RunDir, doing: str) -> Iterator[Claim]:
    """Hold the right to submit the run; set ``job_id`` inside when a job was submitted.

    Raises:
        UserError: another client is submitting this run now.
    """
    root = run_dir.submission_claims
    root.mkdir(exist_ok=True)
    newest = max(_numbers(root), default=0)
    if newest and (state := read_claim(run_dir, newest)).held:
        raise UserError(_refusal(run_dir, doing, state))
    claim = Claim(root / f"{newest + 1:03d}")
    try:
        claim.folder.mkdir()
    except FileExistsError as error:
        raise UserError(_refusal(run_dir, doing, read_claim(run_dir, newest + 1))) from error
    process = ProcessRef.of(os.getpid())
    holder = {
        "doing": doing,
        "user": user_name(),
        "host": socket.gethostname(),
        "pid": os.getpid(),
        "process": process.as_json() if process else None,
        "since": time.time(),
    }
    write_json_atomically(claim.folder / "holder.json", holder)
    threading.Thread(target=claim.touch, name="submission-claim", daemon=True).start()
    try:
        yield claim
    finally:
        claim.end()


def read_claim(run_dir: RunDir, number: int) -> ClaimState:
    """State of one claim; a folder whose holder has not written its name yet is held."""
    folder = run_dir.submission_claims / f"{number:03d}"
    ended = _read(folder / "ended.json")
    job_id = (ended or {}).get("job_id")
    return ClaimState(
        number=number,
        ended=ended is not None,
        job_id=str(job_id) if job_id is not None else None,
        holder=_read(folder / "holder.json") or {},
        silent_s=_silent_s(folder),
    )


def read_claims(run_dir: RunDir) -> list[ClaimState]:
    """All claims in order."""
    return [read_claim(run_dir, n) for n in sorted(_numbers(run_dir.submission_claims))]


def superseded(
    claims: Sequence[ClaimState], mine: int | None, attempts: Sequence[Attempt], restarts: int
) -> str | None:
    """Why a supervisor that starts now must not act; None when the run is its own.

    ``attempts`` are those of this job: one that Slurm restarted elsewhere has counted one restart
    more than the process that was left behind.
    """
    later = [one for one in claims if mine is not None and one.number > mine and one.job_id]
    if later:
        return f"job {later[-1].job_id} was submitted for this run later"
    counted = max((one.restarts for one in attempts), default=0)
    if counted > restarts:
        return f"the job runs elsewhere: it was restarted {counted} times, here {restarts}"
    return None


def _refusal(run_dir: RunDir, doing: str, state: ClaimState) -> str:
    name, who = "another client", state.holder
    if who:
        name = f"{who.get('doing')} of {who.get('user')}, "
        name += f"process {who.get('pid')} on {who.get('host')}"
    return (
        f"{doing}: {run_dir.run_id} is being submitted right now by {name}; wait for it (a client "
        f"that died on another host is given up after {DEAD_AFTER_S:.0f} s)"
    )


def _numbers(root: Path) -> list[int]:
    try:
        return [int(entry.name) for entry in root.iterdir() if entry.name.isdigit()]
    except FileNotFoundError:
        return []


def _silent_s(folder: Path) -> float:
    """Seconds since the claim was touched, by the clock of the file system's own host."""
    try:
        touched = folder.stat().st_mtime
        with tempfile.NamedTemporaryFile(dir=folder.parent, prefix=".clock-") as now:
            return os.fstat(now.fileno()).st_mtime - touched
    except OSError:
        return 0.0


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None
