"""Reads what the account of a run rests on: its folder, and where Slurm answers its jobs' times."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from monitor.allocations import Span
from monitor.goodput import Goodput, GoodputRecords, account
from monitor.slurm import Ask, ask, epoch_s
from train.events import parse_event, read_events
from train.rundir import RunDir

_HEARTBEAT, _SAMPLES, _START = (
    f'"kind":"{kind}"'.encode() for kind in ("heartbeat", "samples", "start")
)
_SEPARATOR = "\x1f"
_FIELDS = "JobIDRaw,Start,End"


def read_goodput(
    folder: Path, *, ended: bool, pending: bool = False, run: Ask | None = ask
) -> Goodput:
    """The account of the run in a folder, as of now; ``run`` None asks no scheduler."""
    run_dir = RunDir(folder)
    submissions = tuple(read_events(run_dir.submissions))
    slurm = [str(line.get("job_id")) for line in submissions if line.get("cluster") == "slurm"]
    return account(
        GoodputRecords(
            attempts=tuple(read_events(run_dir.attempts)),
            events=tuple(rank_events(run_dir.events(0))),
            submissions=submissions,
            jobs=tuple(job_spans(slurm, run=run)) if run is not None and slurm else (),
            now=time.time(),
            ended=ended,
            pending=pending,
        )
    )


def rank_events(path: Path) -> Iterator[dict[str, Any]]:
    """Events of a rank without samples, and of the heartbeats only each attempt's last one.

    Most lines are not even parsed, so that a long run's file is read in seconds.
    """
    beat = b""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return
    with file:
        for line in file:
            if _HEARTBEAT in line:
                beat = line
                continue
            if _SAMPLES in line:
                continue
            if _START in line:
                yield from _parsed(beat)
                beat = b""
            yield from _parsed(line)
    yield from _parsed(beat)


def _parsed(line: bytes) -> Iterator[dict[str, Any]]:
    event = parse_event(line)
    if event is not None:
        yield event


def job_spans(job_ids: Sequence[str], *, run: Ask = ask) -> list[Span]:
    """Every allocation of these jobs by sacct, requeues included; nothing without accounting.

    ``--duplicates`` is what makes sacct(1) show a requeued job's earlier stretches.
    """
    command = ["sacct", "-X", "--duplicates", "-P", "-n", f"--delimiter={_SEPARATOR}"]
    answer = run([*command, f"--format={_FIELDS}", f"--jobs={','.join(job_ids)}"])
    return list(_spans(answer.out.splitlines())) if answer.code == 0 else []


def _spans(lines: Iterable[str]) -> Iterator[Span]:
    for line in lines:
        job_id, started, ended = [*line.split(_SEPARATOR), "", ""][:3]
        start_s, end_s = epoch_s(started), epoch_s(ended)
        if start_s is not None and (end_s is None or end_s > start_s):
            yield Span(job_id, round(start_s * 1e6), None if end_s is None else round(end_s * 1e6))
