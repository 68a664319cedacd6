"""Asks Slurm about jobs: few batched calls, every one with a time limit; unknown stays unknown.

Text output with pinned fields is parsed, not ``--json``, whose shape changed from one Slurm to the
next. Works without accounting. A scheduler that does not answer never means that a job has ended.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol

from submitrain.config.types import parse_duration_s
from submitrain.slurm.parse import expand_nodes

UNKNOWN = "UNKNOWN"
"""State of a job about which nobody could be asked."""
NOT_FOUND = "NOT_FOUND"
"""State of a job that the scheduler answered about, and does not know (any more)."""
PENDING_STATES = frozenset(["PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"])
RUNNING_STATES = frozenset(
    ["RUNNING", "COMPLETING", "CONFIGURING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT"]
)
ENDED_STATES = frozenset(
    ["BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"]
) | frozenset(["OUT_OF_MEMORY", "PREEMPTED", "TIMEOUT", "REVOKED"])
"""States of squeue(1), "JOB STATE CODES", in the groups that matter here."""

ASK_TIMEOUT_S = 15.0
_SEPARATOR = "\x1f"
_SQUEUE_FIELDS = (
    "JobID,State,Reason,NodeList,NumNodes,StartTime,EndTime,SubmitTime,PreemptTime,RestartCnt,"
    "TimeLimit,Name,Partition,UserName,Account,QOS"
)
_SACCT_FIELDS = (
    "JobIDRaw,State,Reason,NodeList,NNodes,Start,End,Submit,ExitCode,Timelimit,JobName,Partition,"
    "User,Account,QOS"
)
_FIELD = re.compile(r"(?:^|\s)([A-Z][A-Za-z_/:]*)=")
_NO_SUCH_JOB = "Invalid job id"


@dataclass(frozen=True)
class JobInfo:
    """One job as the scheduler sees it now; times are seconds since the epoch (UTC)."""

    job_id: str
    state: str
    reason: str = ""
    nodes: tuple[str, ...] = ()
    num_nodes: int | None = None
    submitted_at: float | None = None
    started_at: float | None = None
    ends_at: float | None = None
    """When it ended, or when its time limit will end it."""
    preempted_at: float | None = None
    """When Slurm decided to take the nodes away (PreemptTime)."""
    time_limit_s: int | None = None
    restarts: int = 0
    requeueable: bool = True
    excluded: tuple[str, ...] = ()
    """Nodes that it shall not get (ExcNodeList); known from scontrol only."""
    exit_code: str = ""
    name: str = ""
    partition: str = ""
    user: str = ""
    account: str = ""
    qos: str = ""
    flags: frozenset[str] = field(default_factory=frozenset)
    """Further states shown beside the first one, such as COMPLETING."""

    @property
    def known(self) -> bool:
        """Whether anybody could be asked."""
        return self.state != UNKNOWN

    @property
    def pending(self) -> bool:
        """Whether it waits in the queue (again)."""
        return self.state in PENDING_STATES

    @property
    def running(self) -> bool:
        """Whether it holds nodes and was not told to end."""
        return self.state in RUNNING_STATES - {"COMPLETING"}

    @property
    def ended(self) -> bool:
        """Whether it ended for good, as far as Slurm knows."""
        return self.state in ENDED_STATES


@dataclass(frozen=True)
class Answer:
    """What a scheduler's command said; ``code`` None means that it did not answer in time."""

    code: int | None
    out: str
    error: str


class Ask(Protocol):
    """Runs one command of the scheduler."""

    def __call__(self, command: Sequence[str], *, timeout_s: float = ...) -> Answer: ...


def ask(command: Sequence[str], *, timeout_s: float = ASK_TIMEOUT_S) -> Answer:
    """Run a Slurm command with epoch times and a time limit; never raises for what Slurm does."""
    environment = {**os.environ, "SLURM_TIME_FORMAT": "%s", "LC_ALL": "C.UTF-8"}
    for name in [name for name in environment if name.startswith(("SQUEUE_", "SACCT_"))]:
        del environment[name]
    try:
        done = subprocess.run(
            list(command),
            env=environment,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Answer(None, "", f"{command[0]} did not answer within {timeout_s:g} s")
    except OSError as error:
        return Answer(None, "", f"{command[0]} cannot be run: {error}")
    return Answer(done.returncode, done.stdout, done.stderr.strip())


def show_job(job_id: str, *, run: Ask = ask, timeout_s: float = ASK_TIMEOUT_S) -> JobInfo:
    """One job by ``scontrol show job``; the state is UNKNOWN or NOT_FOUND where that is all."""
    answer = run(["scontrol", "show", "job", "--oneliner", job_id], timeout_s=timeout_s)
    if answer.code == 0 and answer.out.strip():
        return job_of_scontrol(parse_scontrol(answer.out))
    if answer.code is not None and _NO_SUCH_JOB in answer.error:
        return JobInfo(job_id, NOT_FOUND, answer.error)
    return JobInfo(job_id, UNKNOWN, answer.error or "scontrol said nothing")


def query_jobs(job_ids: Iterable[str], *, run: Ask = ask) -> dict[str, JobInfo]:
    """All these jobs with one squeue call, and one sacct call for those that squeue forgot.

    Every id is in the result: as NOT_FOUND where Slurm answered and does not know it, as UNKNOWN
    where it could not be asked.
    """
    wanted = list(dict.fromkeys(job_ids))
    if not wanted:
        return {}
    found, problem = _ask_squeue(wanted, run)
    missing = [job_id for job_id in wanted if job_id not in found]
    no_accounting = ""
    if missing:
        ended, no_accounting = _ask_sacct(missing, run)
        found.update(ended)
    # squeue's word is the controller's: a job that it denies neither waits nor runs.
    left = (
        JobInfo("", UNKNOWN, problem)
        if problem
        else JobInfo("", NOT_FOUND, no_accounting or "Slurm forgot it")
    )
    return {
        job_id: found.get(job_id) or JobInfo(job_id, left.state, left.reason) for job_id in wanted
    }


def find_step(job_id: str, name: str, *, run: Ask = ask) -> str | None:
    """Id (``12.3``) of the newest running step of a job with this name, None if there is none."""
    command = ["squeue", "--steps", "--noheader", f"--jobs={job_id}", "--format=%i %j"]
    steps = [line.split(maxsplit=1) for line in run(command).out.splitlines()]
    found = [step[0] for step in steps if len(step) == 2 and step[1].strip() == name]
    return max(found, key=lambda step: _integer(step.partition(".")[2]) or 0, default=None)


def kill_wait_s(*, run: Ask = ask) -> int | None:
    """Seconds between TERM and KILL on this cluster (KillWait), or None when unknown."""
    match = re.search(r"^KillWait\s*=\s*(\d+)", run(["scontrol", "show", "config"]).out, re.M)
    return int(match.group(1)) if match else None


def _ask_squeue(job_ids: Sequence[str], run: Ask) -> tuple[dict[str, JobInfo], str]:
    # --states=all also shows jobs that ended within MinJobAge. One unknown id beside known ones is
    # no error for squeue; a lone unknown id is ("Invalid job id specified").
    columns = ",".join(f"{name}:{_SEPARATOR}" for name in _SQUEUE_FIELDS.split(","))
    command = ["squeue", "--noheader", "--states=all", f"--Format={columns}"]
    answer = run([*command, f"--jobs={','.join(job_ids)}"])
    if answer.code == 0:
        rows = [line.split(_SEPARATOR) for line in answer.out.splitlines()]
        names = _SQUEUE_FIELDS.split(",")
        jobs = [job_of_row(dict(zip(names, row, strict=False))) for row in rows if len(row) > 1]
        return {job.job_id: job for job in jobs}, ""
    if answer.code is not None and _NO_SUCH_JOB in answer.error:
        return {}, ""
    return {}, answer.error or f"squeue exited {answer.code}"


def _ask_sacct(job_ids: Sequence[str], run: Ask) -> tuple[dict[str, JobInfo], str]:
    command = ["sacct", "-X", "-P", "-n", "--noconvert", f"--delimiter={_SEPARATOR}"]
    answer = run([*command, f"--format={_SACCT_FIELDS}", f"--jobs={','.join(job_ids)}"])
    if answer.code == 0:
        rows = [line.split(_SEPARATOR) for line in answer.out.splitlines()]
        names = _SACCT_FIELDS.split(",")
        jobs = [job_of_row(dict(zip(names, row, strict=False))) for row in rows if len(row) > 1]
        return {job.job_id: job for job in jobs}, ""
    # Without slurmdbd sacct exits 1 ("Slurm accounting storage is disabled"): jobs that squeue
    # forgot are then beyond anybody's knowledge.
    return {}, answer.error or f"sacct exited {answer.code}"


def parse_scontrol(text: str) -> dict[str, str]:
    """Fields of the first job in the output of ``scontrol show job --oneliner``.

    A field begins with a capital after white space, so ``ReqNodeList=`` is not taken for
    ``NodeList=``, and values may hold commas, blanks and equal signs (``TRES=cpu=1,mem=2G``).
    """
    line = text.strip().partition("\n")[0]
    matches = list(_FIELD.finditer(line))
    ends = [match.start() for match in matches[1:]] + [len(line)]
    fields: dict[str, str] = {}
    for match, end in zip(matches, ends, strict=True):
        # The first one holds: free text at the end (Comment, StdOut) may look like a field.
        fields.setdefault(match.group(1), line[match.end() : end].strip())
    return fields


def job_of_scontrol(fields: Mapping[str, str]) -> JobInfo:
    """What one record of ``scontrol show job`` says."""
    return JobInfo(
        job_id=fields.get("JobId", ""),
        state=fields.get("JobState", UNKNOWN),
        reason=_word(fields.get("Reason")),
        nodes=tuple(expand_nodes(_word(fields.get("NodeList")))),
        num_nodes=_integer(fields.get("NumNodes")),
        submitted_at=epoch_s(fields.get("SubmitTime")),
        started_at=epoch_s(fields.get("StartTime")),
        ends_at=epoch_s(fields.get("EndTime")),
        preempted_at=epoch_s(fields.get("PreemptTime")),
        time_limit_s=_limit_s(fields.get("TimeLimit")),
        restarts=_integer(fields.get("Restarts")) or 0,
        requeueable=fields.get("Requeue") != "0",
        excluded=tuple(expand_nodes(_word(fields.get("ExcNodeList")))),
        exit_code=fields.get("ExitCode", ""),
        name=fields.get("JobName", ""),
        partition=fields.get("Partition", ""),
        user=fields.get("UserId", "").partition("(")[0],
        account=_word(fields.get("Account")),
        qos=_word(fields.get("QOS")),
    )


_ROW_NAMES = {
    "JobIDRaw": "JobId",
    "JobID": "JobId",
    "State": "JobState",
    "NNodes": "NumNodes",
    "Start": "StartTime",
    "End": "EndTime",
    "Submit": "SubmitTime",
    "RestartCnt": "Restarts",
    "Timelimit": "TimeLimit",
    "Name": "JobName",
    "UserName": "UserId",
    "User": "UserId",
}


def job_of_row(row: Mapping[str, str]) -> JobInfo:
    """What one row of squeue or sacct says; ``CANCELLED by 1000`` is CANCELLED."""
    fields = {_ROW_NAMES.get(name, name): value.strip() for name, value in row.items()}
    state, _, note = fields.get("JobState", UNKNOWN).partition(" ")
    job = job_of_scontrol({**fields, "JobState": state})
    if not note:
        return job
    return JobInfo(**{**job.__dict__, "reason": note})


def epoch_s(text: str | None) -> float | None:
    """Seconds since the epoch of a time Slurm printed: ``%s``, or ISO in local time; else None."""
    text = _word(text)
    if not text:
        return None
    if text.isdigit():
        return float(text) or None
    try:
        return datetime.fromisoformat(text).timestamp()
    except ValueError:
        return None


def _word(text: str | None) -> str:
    """The text, or nothing where Slurm prints a word that means nothing."""
    text = (text or "").strip()
    return "" if text in {"None", "(null)", "N/A", "Unknown", "NONE", "n/a"} else text


def _integer(text: str | None) -> int | None:
    match = re.match(r"\d+", text or "")
    return int(match.group()) if match else None


def _limit_s(text: str | None) -> int | None:
    if not text or text in {"Partition_Limit", "INVALID", "NOT_SET"}:
        return None
    try:
        return parse_duration_s(text)
    except ValueError:
        return None
