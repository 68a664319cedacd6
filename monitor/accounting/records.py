"""What the account of a run's time rests on: its folder's records, and its jobs in sacct."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from submitrain.attempts import Attempt
from submitrain.events import Event, parse_event
from submitrain.slurm.client import Ask, ask, query_sacct
from submitrain.slurm.parse import epoch_s

_HEARTBEAT, _SAMPLES, _START = (
    f'"kind":"{kind}"'.encode() for kind in ("heartbeat", "samples", "start")
)
_FIELDS = "JobIDRaw,Start,End,AllocTRES,User,Account,QOS,Partition,WCKey"


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


def read_allocations(job_ids: Sequence[str], *, run: Ask = ask) -> tuple[list[SacctJob], str]:
    """Every allocation of these jobs, requeues included, and what went wrong ("" for nothing)."""
    rows, problem = query_sacct(job_ids, _FIELDS, run=run)
    return [job for row in rows if (job := _parse_job(row)) is not None], problem


def _parse_job(row: Mapping[str, str]) -> SacctJob | None:
    """One row of sacct; None when the job never held anything."""
    start_s, end_s = epoch_s(row["Start"]), epoch_s(row["End"])
    if start_s is None or (end_s is not None and end_s <= start_s):
        return None
    return SacctJob(
        job_id=row["JobIDRaw"],
        started_us=round(start_s * 1e6),
        ended_us=None if end_s is None else round(end_s * 1e6),
        tres=row["AllocTRES"],
        user=row["User"],
        account=row["Account"],
        qos=row["QOS"],
        partition=row["Partition"],
        # A leading star says that the key is the user's default (sacct(1)); it may be all there is.
        wckey=row["WCKey"].lstrip("*"),
    )
