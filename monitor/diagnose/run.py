"""The cause of a run's end, from its run folder: scheduler, slurmstepd, ranks' records, logs.

Evidence is gathered here and weighed in ``monitor.diagnose.cause``. Reads files; asks no scheduler:
who has asked hands over its ``JobInfo``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from submitrain.attempts import Attempt, Cause, read_attempts
from submitrain.errors import UserError
from submitrain.events import Kind, read_events
from submitrain.monitor.diagnose.cause import diagnose
from submitrain.monitor.diagnose.model import Diagnosis, FailureClass, Finding, Moment, Trust
from submitrain.monitor.diagnose.remedy import remedy_for
from submitrain.monitor.diagnose.scan import scan_file, scan_text
from submitrain.run_folder import RunDir
from submitrain.slurm.jobs import JobInfo

F = FailureClass
EVENT_CLOCK = "event"
_STATES = {
    "TIMEOUT": F.TIME_LIMIT,
    "DEADLINE": F.TIME_LIMIT,
    "PREEMPTED": F.PREEMPTED,
    "NODE_FAIL": F.NODE_FAIL,
    "BOOT_FAIL": F.NODE_FAIL,
    "OUT_OF_MEMORY": F.HOST_OOM,
}
_ENDED_FOR = {
    "TIME LIMIT": F.TIME_LIMIT,
    "PREEMPTION": F.PREEMPTED,
    "JOB REQUEUE": F.PREEMPTED,
    "NODE FAILURE": F.NODE_FAIL,
}
_CAUSES: dict[Cause | None, tuple[FailureClass, Trust]] = {
    Cause.TIME_LIMIT: (F.TIME_LIMIT, Trust.SCHEDULER),
    Cause.PREEMPTED: (F.PREEMPTED, Trust.SCHEDULER),
    Cause.REQUEUED: (F.PREEMPTED, Trust.SCHEDULER),
    Cause.CANCELLED: (F.PREEMPTED, Trust.SCHEDULER),
    Cause.TERMINATED: (F.PREEMPTED, Trust.KERNEL),
    Cause.NOT_FINITE: (F.NAN_LOSS, Trust.RECORD),
    Cause.LOSS_SPIKE: (F.NAN_LOSS, Trust.RECORD),
    Cause.HUNG: (F.NCCL_TIMEOUT, Trust.SCHEDULER),
    Cause.NODE_LOST: (F.NODE_FAIL, Trust.SCHEDULER),
    Cause.HOST_OUT_OF_MEMORY: (F.HOST_OOM, Trust.KERNEL),
    Cause.OUT_OF_MEMORY: (F.CUDA_OOM, Trust.RECORD),
    Cause.USER_ERROR: (F.CONFIG_ERROR, Trust.CAUSE),
    Cause.CHECKPOINT_ERROR: (F.FILESYSTEM, Trust.EXCEPTION),
    Cause.CONTAINER_ERROR: (F.CONTAINER_ERROR, Trust.CAUSE),
    Cause.LAUNCH_FAILED: (F.CONFIG_ERROR, Trust.EXIT),
    Cause.LOST: (F.NODE_FAIL, Trust.EXIT),
}
"""What the supervisor's own conclusion means."""
_EXCEPTIONS = {
    "UserError": F.CONFIG_ERROR,
    "ConfigError": F.CONFIG_ERROR,
    "DataError": F.CONFIG_ERROR,
    "ClusterError": F.CONFIG_ERROR,
    "NotFiniteError": F.NAN_LOSS,
    "LossSpikeError": F.NAN_LOSS,
}
"""Our own exceptions (submitrain.errors), whatever their message says."""
_SIGNALS = {
    "SIGKILL": (F.HOST_OOM, Trust.EXIT),
    "SIGABRT": (F.SEGFAULT, Trust.EXIT),
    "SIGSEGV": (F.SEGFAULT, Trust.CAUSE),
    "SIGBUS": (F.SEGFAULT, Trust.CAUSE),
    "SIGILL": (F.SEGFAULT, Trust.CAUSE),
    "SIGFPE": (F.SEGFAULT, Trust.CAUSE),
}
_KILLED = re.compile(r"\brank \d+ (?:\([^)]*\) )?was killed by (?P<signal>SIG[A-Z]+)")
_NAMED_RANK = re.compile(r"\brank (\d+) (?:\([^)]*\) )?(?:was killed|raised|exited|hung)")
_SLURMS_WORD = re.compile(r"^\s*(?:slurm|srun)")
_SUPERVISORS_WORD = re.compile(r"^\s*\d{4}-\d\d-\d\d \d\d:\d\d:\d\d \[[a-z]+ *\] ")
"""A line of the supervisor's log; kernel and slurmstepd write none that begins like this."""


def diagnose_run(
    folder: Path,
    *,
    attempt: int | None = None,
    job: JobInfo | None = None,
    log_bytes: int | None = None,
) -> Diagnosis:
    """The diagnosis of the newest attempt of a run, or of ``attempt``.

    ``log_bytes`` bounds what is read of all logs together: the last bytes of each.

    Raises:
        UserError: the folder holds no attempt (of that number).
    """
    run_dir = RunDir(folder)
    attempts = read_attempts(run_dir)
    found = [one for one in attempts if attempt in (None, one.number)]
    if not found:
        known = ", ".join(str(one.number) for one in attempts) or "none yet"
        asked = f"attempt {attempt}" if attempt is not None else "an attempt"
        raise UserError(f"{run_dir.root}: expected {asked} in attempts.jsonl, got: {known}")
    chosen = found[-1]
    if chosen.cause is Cause.FINISHED:
        summary = f"attempt {chosen.number}: every rank recorded its finish"
        nothing = Finding(F.BENIGN, Trust.SCHEDULER, "")
        return Diagnosis(F.BENIGN, 0.99, summary, remedy_for(nothing))
    notes = [] if chosen.cause else [f"attempt {chosen.number} has no recorded end (yet)"]
    findings = [
        *_of_scheduler(chosen, job),
        *_of_supervisor(chosen),
        *_of_ranks(run_dir, chosen.number),
        *_of_logs(run_dir, chosen, log_bytes, is_first=chosen is attempts[0]),
    ]
    result = diagnose(findings, notes)
    if result.node or result.rank is None:
        return result
    starts = read_events(run_dir.events(result.rank), kinds=frozenset({Kind.START}))
    hosts = (one.get("host") for one in starts if one.get("attempt") == chosen.number)
    return replace(result, node=next((str(host) for host in hosts if host), None))


def _of_scheduler(attempt: Attempt, job: JobInfo | None) -> Iterator[Finding]:
    facts = attempt.evidence
    states = [("attempts.jsonl", str(facts.get("job_state") or ""))]
    if job is not None and job.known:
        states.append(("scheduler", job.state))
    for source, state in states:
        kind = _STATES.get(state)
        if kind is not None:
            yield Finding(kind, Trust.SCHEDULER, f"job state {state}", source=source)
    kind = _ENDED_FOR.get(str(facts.get("ended_for") or "").strip().upper())
    if kind is not None:
        text = f"slurmstepd ended the step: {facts['ended_for']}"
        yield Finding(kind, Trust.KERNEL, text, source="attempts.jsonl")


def _of_supervisor(attempt: Attempt) -> Iterator[Finding]:
    """The supervisor's own conclusion; of signals the one it names, the others are its doing."""
    if attempt.cause is None:
        return
    text = attempt.explanation or str(attempt.cause)
    named = _KILLED.search(text)
    rank = int(match[1]) if (match := _NAMED_RANK.search(text)) else None
    kind, trust = F.PYTHON_EXCEPTION, Trust.EXIT
    if attempt.cause in _CAUSES:
        kind, trust = _CAUSES[attempt.cause]
    elif named:
        kind, trust = _SIGNALS.get(named["signal"], (kind, trust))
    yield Finding(kind, trust, text, source="attempts.jsonl", rank=rank)


def _of_ranks(run_dir: RunDir, attempt: int) -> Iterator[Finding]:
    """Each rank's own failure record."""
    for path in sorted(run_dir.events_dir.glob("rank*.jsonl")):
        host = None
        kinds = frozenset({Kind.START, Kind.FAILURE})
        for number, event in enumerate(read_events(path, kinds=kinds), start=1):
            if event.get("attempt") != attempt:
                continue
            if event["kind"] == Kind.START:
                host = str(event.get("host") or "") or None
            else:
                yield _of_failure(event, str(path.relative_to(run_dir.root)), host, number)


def _of_failure(event: dict[str, Any], source: str, host: str | None, number: int) -> Finding:
    exception, message = str(event.get("exception", "")), str(event.get("message", ""))
    first_line = message.strip().partition("\n")[0]
    where = f" ({event['where']})" if event.get("where") else ""
    kind = kind_of_exception(exception, message, str(event.get("traceback", "")))
    return Finding(
        kind=kind,
        trust=Trust.VICTIM if event.get("victim") else Trust.RECORD,
        text=f"{exception}: {first_line}{where} at step {event.get('step')}"[:400],
        source=source,
        offset=number,
        rank=int(event.get("rank", -1)),
        node=host,
        moment=Moment(EVENT_CLOCK, float(event.get("t", 0.0))),
    )


def kind_of_exception(exception: str, message: str, traceback: str = "") -> FailureClass:
    """What kind of failure an exception (``module.Class``) speaks of."""
    ours = _EXCEPTIONS.get(exception.rpartition(".")[2])
    if ours is not None:
        return ours
    for text in (f"{exception}: {message}", traceback):
        kind = diagnose(scan_text(text)).kind
        if kind not in (F.BENIGN, F.PYTHON_EXCEPTION):
            return kind
    return F.PYTHON_EXCEPTION


def _of_logs(
    run_dir: RunDir, attempt: Attempt, log_bytes: int | None, *, is_first: bool
) -> Iterator[Finding]:
    ranks = sorted(run_dir.logs(attempt.number).glob("*"))
    found = run_dir.submitit.iterdir() if run_dir.submitit.is_dir() else ()
    jobs = sorted(path for path in found if path.suffix in (".out", ".err", ".log"))
    share = None if log_bytes is None else log_bytes // max(1, len(ranks) + len(jobs))
    for path in ranks:
        yield from _scan(path, run_dir, share)
    for path in jobs:
        yield from (
            one for one in _scan(path, run_dir, share) if _belongs(one, attempt, is_first=is_first)
        )


def _scan(path: Path, run_dir: RunDir, last_bytes: int | None) -> list[Finding]:
    try:
        return scan_file(path, name=str(path.relative_to(run_dir.root)), last_bytes=last_bytes)
    except OSError:
        return []


def _belongs(finding: Finding, attempt: Attempt, *, is_first: bool) -> bool:
    """Whether a line of the job's own log is Slurm's word about this attempt.

    All attempts of a job share that log, and our supervisor repeats in it what ranks said.
    """
    if _SUPERVISORS_WORD.match(finding.text):
        return False
    if finding.trust < Trust.KERNEL and not _SLURMS_WORD.match(finding.text):
        return False
    if finding.moment is None or finding.moment.clock != "wall":
        return is_first
    return finding.moment.seconds >= attempt.started_at - 1.0
