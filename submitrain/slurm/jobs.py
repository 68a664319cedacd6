"""A job as squeue, sacct and scontrol show it, and why Slurm lets one wait. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from submitrain.config.types import UNLIMITED_S
from submitrain.slurm.parse import duration_s, epoch_s, expand_nodes, leading_integer, word

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


def job_of_scontrol(fields: Mapping[str, str]) -> JobInfo:
    """What one record of ``scontrol show job`` says."""
    return JobInfo(
        job_id=fields.get("JobId", ""),
        state=fields.get("JobState", UNKNOWN),
        reason=word(fields.get("Reason")),
        nodes=tuple(expand_nodes(word(fields.get("NodeList")))),
        num_nodes=leading_integer(fields.get("NumNodes")),
        submitted_at=epoch_s(fields.get("SubmitTime")),
        started_at=epoch_s(fields.get("StartTime")),
        ends_at=epoch_s(fields.get("EndTime")),
        preempted_at=epoch_s(fields.get("PreemptTime")),
        time_limit_s=duration_s(fields.get("TimeLimit"), unlimited=UNLIMITED_S),
        restarts=leading_integer(fields.get("Restarts")) or 0,
        requeueable=fields.get("Requeue") != "0",
        excluded=tuple(expand_nodes(word(fields.get("ExcNodeList")))),
        exit_code=fields.get("ExitCode", ""),
        name=fields.get("JobName", ""),
        partition=fields.get("Partition", ""),
        user=fields.get("UserId", "").partition("(")[0],
        account=word(fields.get("Account")),
        qos=word(fields.get("QOS")),
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
    return replace(job, reason=note) if note else job


_REASONS = {
    "Priority": ("other jobs go first", "ask for less, or wait; squeue --start shows an estimate"),
    "Resources": ("it is next, and nodes are not free yet", "wait, or ask for fewer nodes"),
    "Dependency": ("it waits for another job", "look at slurm.dependency"),
    "DependencyNeverSatisfied": (
        "the job it depends on failed, so it will never start",
        "cancel it and launch again without slurm.dependency",
    ),
    "BeginTime": ("its earliest start lies ahead", "look at slurm.begin; a requeue waits 2 min"),
    "PartitionTimeLimit": (
        "its time limit is longer than the partition allows, so it will never start",
        "lower slurm.time or choose another partition",
    ),
    "PartitionNodeLimit": (
        "it asks for more nodes than the partition has, so it will never start",
        "lower slurm.nodes or choose another partition",
    ),
    "JobHeldUser": ("its owner holds it", "scontrol release JOB"),
    "JobHeldAdmin": ("an administrator holds it", "ask the administrators"),
    "ReqNodeNotAvail": (
        "nodes it needs are down, drained or reserved",
        "look at sinfo -R, and at slurm.nodelist and slurm.exclude",
    ),
}
"""squeue(1), "JOB REASON CODES", in plain words, and what to do."""


def explain_reason(reason: str) -> tuple[str, str]:
    """A reason as squeue prints it in plain words ("" where it needs none), and what to do."""
    word = _reason_name(reason)
    if word.startswith(("QOS", "Assoc")):
        return "a limit of its account or QOS is used up", "wait for jobs of it to end"
    return _REASONS.get(word, ("", "look at squeue --start and at the partition"))


def reason_text(reason: str) -> str:
    """``Priority: other jobs go first``; what is in plain words already stays as it is."""
    plain, _ = explain_reason(reason)
    if not plain or plain in reason:
        return reason
    more = reason.partition(",")[2].strip(" ()")
    return f"{_reason_name(reason)}: {plain}" + (f" ({more})" if more else "")


def _reason_name(reason: str) -> str:
    return re.split("[,:]", reason)[0].strip("() ")
