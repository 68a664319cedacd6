"""The one client of Slurm: few batched commands, every one with a time limit.

Text output with pinned fields is parsed, not ``--json``, whose shape changed from one Slurm to the
next. Works without accounting. A scheduler that does not answer never means that a job has ended:
unknown stays unknown.
"""

from __future__ import annotations

import getpass
import os
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

from submitrain.slurm.cluster import (
    ACCOUNT_FIELDS,
    QOS_FIELDS,
    SINFO_FIELDS,
    USER_FIELDS,
    ClusterFacts,
    ClusterInventory,
    parse_accounts,
    parse_associations,
    parse_nodes,
    parse_parents,
    parse_partitions,
    parse_qos,
    parse_reservations,
    parse_settings,
    parse_sinfo,
    usable_nodes,
)
from submitrain.slurm.jobs import NOT_FOUND, UNKNOWN, JobInfo, job_of_row, job_of_scontrol
from submitrain.slurm.parse import SEPARATOR, leading_integer, parse_rows, parse_scontrol

ASK_TIMEOUT_S = 15.0
CLUSTER_TIMEOUT_S = 5.0
"""For each of the commands that describe the cluster."""
_JOBS_A_CALL = 1000
_SQUEUE_FIELDS = (
    "JobID,State,Reason,NodeList,NumNodes,StartTime,EndTime,SubmitTime,PreemptTime,RestartCnt,"
    "TimeLimit,Name,Partition,UserName,Account,QOS"
)
_SACCT_FIELDS = (
    "JobIDRaw,State,Reason,NodeList,NNodes,Start,End,Submit,ExitCode,Timelimit,JobName,Partition,"
    "User,Account,QOS"
)
_NO_SUCH_JOB = "Invalid job id"


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
        # Without slurmdbd sacct exits 1 ("Slurm accounting storage is disabled"): jobs that squeue
        # forgot are then beyond anybody's knowledge.
        rows, no_accounting = query_sacct(missing, _SACCT_FIELDS, duplicates=False, run=run)
        found |= {job.job_id: job for job in map(job_of_row, rows)}
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
    return max(found, key=lambda step: leading_integer(step.partition(".")[2]) or 0, default=None)


def _ask_squeue(job_ids: Sequence[str], run: Ask) -> tuple[dict[str, JobInfo], str]:
    # --states=all also shows jobs that ended within MinJobAge. One unknown id beside known ones is
    # no error for squeue; a lone unknown id is ("Invalid job id specified").
    columns = ",".join(f"{name}:{SEPARATOR}" for name in _SQUEUE_FIELDS.split(","))
    command = ["squeue", "--noheader", "--states=all", f"--Format={columns}"]
    answer = run([*command, f"--jobs={','.join(job_ids)}"])
    if answer.code == 0:
        jobs = [job_of_row(row) for row in parse_rows(answer.out, _SQUEUE_FIELDS)]
        return {job.job_id: job for job in jobs}, ""
    if answer.code is not None and _NO_SUCH_JOB in answer.error:
        return {}, ""
    return {}, answer.error or f"squeue exited {answer.code}"


def query_sacct(
    job_ids: Sequence[str],
    fields: str,
    *,
    steps: bool = False,
    duplicates: bool = True,
    run: Ask = ask,
) -> tuple[list[dict[str, str]], str]:
    """Rows of these jobs in Slurm's accounting, and what went wrong ("" for nothing).

    Args:
        fields: names of columns (``sacct --helpformat``) between commas.
        steps: a row for each step behind that of its job.
        duplicates: also what a requeued job was before (sacct(1), ``--duplicates``).
    """
    command = ["sacct", "-P", "-n", "--noconvert", f"--delimiter={SEPARATOR}"]
    command += ([] if steps else ["-X"]) + (["--duplicates"] if duplicates else [])
    rows: list[dict[str, str]] = []
    for start in range(0, len(job_ids), _JOBS_A_CALL):
        ids = ",".join(job_ids[start : start + _JOBS_A_CALL])
        answer = run([*command, f"--format={fields}", f"--jobs={ids}"])
        if answer.code != 0:
            return [], answer.error or f"sacct exited {answer.code}"
        rows += parse_rows(answer.out, fields)
    return rows, ""


def kill_wait_s(*, run: Ask = ask) -> int | None:
    """Seconds between TERM and KILL on this cluster (KillWait), or None when unknown."""
    settings = parse_settings(run(["scontrol", "show", "config"]).out)
    return leading_integer(settings.get("KillWait"))


def nodes_up(partition: str, *, run: Ask = ask) -> frozenset[str] | None:
    """Names of the nodes of a partition that take jobs; None when Slurm does not answer."""
    command = ["sinfo", "--noheader", "--Node", "--format=%N %T"]
    answer = run([*command, *([f"--partition={partition}"] if partition else [])])
    return usable_nodes(answer.out) if answer.code == 0 else None


def has_gpus(*, run: Ask = ask) -> tuple[bool | None, str]:
    """Whether any node has GPUs; None where sinfo does not say, and why."""
    answer = run(["sinfo", "--noheader", "--format=%G"])
    return ("gpu" in answer.out, "") if answer.code == 0 else (None, answer.error or "no answer")


def out_of_service(*, run: Ask = ask) -> dict[str, str]:
    """Why nodes are out of service, by node."""
    answer = run(["sinfo", "--noheader", "--list-reasons", "--format=%n|%E"])
    rows = (line.partition("|") for line in answer.out.splitlines())
    return {node.strip(): why.strip() for node, _, why in rows}


def ping(*, run: Ask = ask, timeout_s: float = ASK_TIMEOUT_S) -> Answer:
    """``scontrol ping``: whether the controller answers."""
    return run(["scontrol", "ping"], timeout_s=timeout_s)


PYXIS_OPTION = "--container-image"
"""Named in srun's help where it has the container plugin (pyxis)."""


def srun_help(*, run: Ask = ask, timeout_s: float = ASK_TIMEOUT_S) -> Answer:
    """``srun --help``, which names the options of the site's plugins."""
    return run(["srun", "--help"], timeout_s=timeout_s)


def find_script(scripts: Iterable[str], *, timeout_s: float, run: Ask = ask) -> tuple[str, str]:
    """The job of this user that runs one of these batch scripts ("" for none), and what failed."""
    wanted = set(scripts)
    command = ["squeue", f"--user={os.getuid()}", "--states=all", "--noheader", "--format=%i|%o"]
    answer = run(command, timeout_s=timeout_s)
    if answer.code != 0:
        return "", answer.error or f"squeue exited {answer.code}"
    rows = (line.strip().partition("|") for line in answer.out.splitlines())
    return next((job_id for job_id, _, script in rows if script in wanted), ""), ""


def sbatch_test_only(script: str, *, unset: Iterable[str] = (), run: Ask = ask) -> str:
    """What ``sbatch --test-only`` says of a batch script, without these environment variables."""
    with tempfile.NamedTemporaryFile("w", prefix="submitrain-", suffix=".sh") as file:
        file.write(script)
        file.flush()
        clean = ["env", *(f"--unset={name}" for name in sorted(unset))]
        command = [*clean, "sbatch", "--test-only", file.name]
        return run(command, timeout_s=CLUSTER_TIMEOUT_S).error


def queue_lines(partitions: Iterable[str], *, run: Ask = ask) -> list[str] | None:
    """Lines ``nodes state limit left start reason`` of jobs that run and wait; None: no answer."""
    command = ["squeue", "--noheader", "--states=PENDING,RUNNING", "--format=%D %T %l %L %S %r"]
    answer = run([*command, f"--partition={','.join(partitions)}"], timeout_s=CLUSTER_TIMEOUT_S)
    return answer.out.splitlines() if answer.code == 0 else None


def scancel(*arguments: str, timeout_s: float = ASK_TIMEOUT_S, run: Ask = ask) -> Answer:
    """End, or signal, a job or a step."""
    return run(["scancel", *arguments], timeout_s=timeout_s)


def requeue_job(job_id: str, *, incomplete: bool = True, run: Ask = ask) -> Answer:
    """Put a running job back into the queue; ``incomplete``: only if it did not complete."""
    return run(["scontrol", "requeue", *(["Incomplete"] if incomplete else []), job_id])


def update_job(job_id: str, change: str, *, run: Ask = ask) -> Answer:
    """Change one property of a job: ``ExcNodeList=node1,node2``."""
    return run(["scontrol", "update", f"JobId={job_id}", change])


def read_cluster(*, run: Ask = ask, user: str | None = None) -> ClusterFacts | None:
    """Ask Slurm; None when its controller does not say what nodes and partitions it has."""
    user = user or getpass.getuser()
    nodes = _output(run, "scontrol", "--all", "show", "node", "--oneliner")
    partitions = _output(run, "scontrol", "--all", "show", "partition", "--oneliner")
    settings = parse_settings(_output(run, "scontrol", "show", "config") or "")
    if not nodes or not partitions or not settings:
        return None
    reservations = _output(run, "scontrol", "show", "reservation", "--oneliner")
    accounting = ClusterFacts({}, {}, settings).has_accounting
    mine = accounts = qos = None
    if accounting:
        where = ["where", f"cluster={settings.get('ClusterName', '')}"]
        show = ("sacctmgr", "--noheader", "--parsable2", "--readonly", "show")
        mine = _output(run, *show, "user", user, "withassoc", f"format={USER_FIELDS}", *where)
        if mine is not None:
            accounts = _output(run, *show, "assoc", *where, "user=", f"format={ACCOUNT_FIELDS}")
            qos = _output(run, *show, "qos", f"format={QOS_FIELDS}")
    return ClusterFacts(
        nodes=parse_nodes(nodes),
        partitions=parse_partitions(partitions),
        settings=settings,
        user=user,
        associations=None if mine is None else parse_associations(mine),
        account_limits=parse_accounts(accounts or ""),
        parents=parse_parents(accounts or ""),
        qos=None if qos is None else parse_qos(qos),
        reservations=None if reservations is None else parse_reservations(reservations),
    )


def _output(run: Ask, *command: str) -> str | None:
    answer = run(command, timeout_s=CLUSTER_TIMEOUT_S)
    return answer.out if answer.code == 0 else None


def query_inventory(*, run: Ask = ask) -> ClusterInventory:
    """Partitions and the user's accounts, by sinfo, sacctmgr and scontrol."""
    columns = SINFO_FIELDS.replace(",", SEPARATOR)
    answer = run(["sinfo", "--noheader", f"--format={columns}"])
    if answer.code != 0:
        return ClusterInventory(problem=answer.error or "sinfo said nothing")
    found = tuple(parse_sinfo(answer.out))
    return ClusterInventory(found, tuple(_accounts(run)), kill_wait_s=kill_wait_s(run=run))


def _accounts(run: Ask) -> list[str]:
    """Accounts that this user may charge; none where there is no accounting."""
    user, show = getpass.getuser(), ["sacctmgr", "--noheader", "--parsable2", "show"]
    answer = run([*show, "assoc", f"user={user}", "format=Account"])
    default = run([*show, "user", user, "format=DefaultAccount"])
    if answer.code != 0:
        return []
    first = default.out.split()[:1] if default.code == 0 else []
    return list(dict.fromkeys([*first, *answer.out.split()]))
