"""What the account of a run's time rests on: its folder's records, and its jobs in sacct."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitrain.attempts import Attempt
from submitrain.events import Event, parse_event
from submitrain.slurm.client import Ask, ask, epoch_s

_HEARTBEAT, _SAMPLES, _START = (
    f'"kind":"{kind}"'.encode() for kind in ("heartbeat", "samples", "start")
)
_SEPARATOR = "\x1f"
_FIELDS = ("JobIDRaw", "Start", "End", "AllocTRES", "User", "Account", "QOS", "Partition", "WCKey")
_JOBS_A_CALL = 1000


@dataclass(frozen=True)
class SacctJob:
    """One allocation of a job as sacct has it; microseconds since the epoch, UTC."""

    job_id: str
    started_us: int
    ended_us: int | None = None
    """None while it lasts."""
    tres: str = ""
    """What it held: ``cpu=64,gres/gpu=8``."""
    user: str = ""
    account: str = ""
    qos: str = ""
    partition: str = ""
    wckey: str = ""


@dataclass(frozen=True)
class RunRecords:
    """A run's records at one moment."""

    attempts: Sequence[Attempt] = ()
    events: tuple[Event, ...] = ()
    """Events of rank 0; heartbeats and samples may be left out but for each attempt's last."""
    submissions: tuple[Event, ...] = ()
    jobs: tuple[SacctJob, ...] = ()
    """One for each time that a job ran; empty where Slurm's accounting does not answer."""
    now: float = 0.0
    ended: bool = True
    """Nothing of the run is alive; else its newest attempt is, until ``now``."""
    pending: bool = False
    """The newest job waits in the queue."""


def rank_events(path: Path) -> Iterator[Event]:
    """Events of a rank without samples, and of the heartbeats only each attempt's last one.

    Most lines are not even parsed, so that a long run's file is read in seconds.
    """
    heartbeat = b""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if _HEARTBEAT in line:
                heartbeat = line
            elif _SAMPLES not in line:
                pending = (heartbeat, line) if _START in line else (line,)
                heartbeat = b"" if _START in line else heartbeat
                yield from (event for one in pending if (event := parse_event(one)) is not None)
    if (last := parse_event(heartbeat)) is not None:
        yield last


def slurm_job_ids(submissions: Sequence[Event]) -> list[str]:
    """The jobs of a run that sacct may know."""
    return [str(line.get("job_id")) for line in submissions if line.get("cluster") == "slurm"]


def query_sacct(job_ids: Sequence[str], *, run: Ask = ask) -> tuple[list[SacctJob], str]:
    """Every allocation of these jobs, requeues included, and what went wrong ("" for nothing).

    ``--duplicates`` is what makes sacct(1) show a requeued job's earlier allocations.
    """
    jobs: list[SacctJob] = []
    for start in range(0, len(job_ids), _JOBS_A_CALL):
        ids = job_ids[start : start + _JOBS_A_CALL]
        command = ["sacct", "-X", "--duplicates", "-P", "-n", f"--delimiter={_SEPARATOR}"]
        answer = run([*command, f"--format={','.join(_FIELDS)}", f"--jobs={','.join(ids)}"])
        if answer.code != 0:
            return [], answer.error or f"sacct exited {answer.code}"
        jobs += [job for line in answer.out.splitlines() if (job := _parse_job(line)) is not None]
    return jobs, ""


def _parse_job(line: str) -> SacctJob | None:
    """One line of sacct; None when the job never held anything."""
    values = line.split(_SEPARATOR) + [""] * len(_FIELDS)
    job_id, started, ended, tres, user, account, qos, partition, wckey = values[: len(_FIELDS)]
    start_s, end_s = epoch_s(started), epoch_s(ended)
    if start_s is None or (end_s is not None and end_s <= start_s):
        return None
    end_us = None if end_s is None else round(end_s * 1e6)
    # A leading star says that the key is the user's default (sacct(1)); it may be all there is.
    wckey = wckey.lstrip("*")
    start_us = round(start_s * 1e6)
    return SacctJob(job_id, start_us, end_us, tres, user, account, qos, partition, wckey)
