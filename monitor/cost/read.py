"""Reads what costs rest on: run folders, and sacct once for all of them where it answers."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from monitor.allocations import Span
from monitor.cost.charges import NOBODY, JobFacts, Labels, RunFacts
from monitor.cost.tres import holdings_of, requested_type
from monitor.evidence import RunEvidence, read_evidence
from monitor.goodput import GoodputRecords
from monitor.goodput_read import rank_events
from monitor.jobs import job_views
from monitor.slurm import Ask, ask, epoch_s
from monitor.status import JobView, RunState, status_of
from train.events import Kind
from train.rundir import RunDir

_SEPARATOR = "\x1f"
_FIELDS = ("JobIDRaw", "Start", "End", "AllocTRES", "User", "Account", "QOS", "Partition", "WCKey")
_JOBS_A_CALL = 1000
Row = Mapping[str, str]


def read_runs(folders: Sequence[Path], *, run: Ask = ask) -> tuple[list[RunFacts], str]:
    """Facts of these runs as of now, and why the accounting could not be asked ("" when it was)."""
    evidence = [read_evidence(folder) for folder in folders]
    views = job_views(evidence)
    job_ids = [
        str(line.get("job_id"))
        for one in evidence
        for line in one.submissions
        if line.get("cluster") == "slurm"
    ]
    rows, problem = accounting(job_ids, run=run) if job_ids else ([], "")
    facts = [_facts(one, views[one.folder.name], rows) for one in evidence]
    return facts, problem


def accounting(job_ids: Sequence[str], *, run: Ask = ask) -> tuple[list[Row], str]:
    """Every allocation of these jobs by sacct, requeues included, and what went wrong.

    ``--duplicates`` is what makes sacct(1) show a requeued job's earlier stretches.
    """
    rows: list[Row] = []
    for place in range(0, len(job_ids), _JOBS_A_CALL):
        ids = job_ids[place : place + _JOBS_A_CALL]
        command = ["sacct", "-X", "--duplicates", "-P", "-n", f"--delimiter={_SEPARATOR}"]
        answer = run([*command, f"--format={','.join(_FIELDS)}", f"--jobs={','.join(ids)}"])
        if answer.code != 0:
            return [], answer.error or f"sacct exited {answer.code}"
        for line in answer.out.splitlines():
            rows.append(dict(zip(_FIELDS, line.split(_SEPARATOR), strict=False)))
    return rows, ""


def _facts(evidence: RunEvidence, view: JobView, rows: Sequence[Row]) -> RunFacts:
    run_dir = RunDir(evidence.folder)
    state = status_of(evidence, view).state
    labels, sbatch = _labels(evidence)
    own = {str(line.get("job_id")) for line in evidence.submissions}
    jobs = tuple(
        job for row in rows if row.get("JobIDRaw") in own and (job := job_facts(row, labels))
    )
    events = tuple(rank_events(run_dir.events(0)))
    records = GoodputRecords(
        attempts=evidence.attempts,
        events=events,
        submissions=evidence.submissions,
        jobs=tuple(job.span for job in jobs),
        now=time.time(),
        ended=state.ended,
        pending=state is RunState.QUEUED,
    )
    devices = (str(one.get("device")) for one in events if one["kind"] == Kind.SETUP)
    gpu_type = requested_type(sbatch) or next(devices, "").lower()
    return RunFacts(labels, records, jobs, gpu_type)


def job_facts(row: Row, labels: Labels) -> JobFacts | None:
    """One row of sacct; None when it never held anything. ``labels`` are the run folder's."""
    start_s, end_s = epoch_s(row.get("Start")), epoch_s(row.get("End"))
    if start_s is None or (end_s is not None and end_s <= start_s):
        return None
    ended_us = None if end_s is None else round(end_s * 1e6)
    named = {
        "user": row.get("User"),
        "account": row.get("Account"),
        "qos": row.get("QOS"),
        "partition": row.get("Partition"),
        # A leading star says that the key is the user's default (sacct(1)); it may be all there is.
        "project": (row.get("WCKey") or "").lstrip("*"),
    }
    known = {key: value for key, value in named.items() if value}
    return JobFacts(
        Span(str(row["JobIDRaw"]), round(start_s * 1e6), ended_us),
        holdings_of(row.get("AllocTRES") or ""),
        replace(labels, **known),
    )


def _labels(evidence: RunEvidence) -> tuple[Labels, Mapping[str, Any]]:
    """Whom the run folder names, and the parameters of the newest submission that has some."""
    found = [_mapping(line.get("sbatch")) for line in evidence.submissions if line.get("sbatch")]
    sbatch = found[-1] if found else {}
    more = _mapping(sbatch.get("additional_parameters"))
    config = _config(evidence.folder)
    local = evidence.record.get("cluster") == "local"
    who = _mapping(evidence.record.get("who")).get("user")
    return Labels(
        run=evidence.folder.name,
        user=_word(who),
        account=_word(sbatch.get("account")),
        project=_word(more.get("wckey") or _mapping(config.get("wandb")).get("project")),
        partition="local" if local else _word(sbatch.get("partition")),
        qos=_word(sbatch.get("qos")),
    ), sbatch


def _config(folder: Path) -> Mapping[str, Any]:
    try:
        return _mapping(yaml.safe_load(RunDir(folder).config.read_text()))
    except (OSError, yaml.YAMLError):
        return {}


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _word(value: object) -> str:
    return str(value) if value else NOBODY
