"""Asking Slurm about jobs: parsers on captured answers, and the calls against a real cluster."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from submitrain.launcher.supervisor.requeue import Requeued, read_answer
from submitrain.slurm.client import Answer, ask, find_step, kill_wait_s, query_jobs, show_job
from submitrain.slurm.jobs import NOT_FOUND, UNKNOWN, JobInfo, job_of_row, job_of_scontrol
from submitrain.slurm.parse import epoch_s, expand_nodes, parse_scontrol
from tests.cluster import ClusterOptions, SlurmCluster
from tests.cluster.fixtures import ClusterFactory

CAPTURED = (
    "JobId=1 JobName=job.sh UserId=root(0) GroupId=root(0) MCS_label=N/A Priority=1 Nice=0 "
    "Account=research QOS=normal JobState=CANCELLED Reason=None Dependency=(null) Requeue=1 "
    "Restarts=2 BatchFlag=1 Reboot=0 ExitCode=0:15 RunTime=00:00:04 TimeLimit=1-00:05:00 "
    "TimeMin=N/A SubmitTime=1795360878 EligibleTime=1795360878 StartTime=1795360878 "
    "EndTime=1795360882 Deadline=N/A PreemptTime=1795360880 SuspendTime=None Partition=normal "
    "ReqNodeList=node[7-9] ExcNodeList=(null) NodeList=node[1-2] BatchHost=node1 NumNodes=2 "
    "NumCPUs=2 TRES=cpu=2,mem=200M,node=2,billing=2 Command=/tmp/a b/job.sh WorkDir=/tmp "
    "Comment=NodeList=fake JobState=RUNNING\n"
)
"""From Slurm 22.05.8; a comment and a blank in a path were added to make it harder."""


def test_a_job_as_scontrol_shows_it() -> None:
    job = job_of_scontrol(parse_scontrol(CAPTURED))
    assert job == JobInfo(
        job_id="1",
        state="CANCELLED",
        nodes=("node1", "node2"),
        num_nodes=2,
        submitted_at=1795360878.0,
        started_at=1795360878.0,
        ends_at=1795360882.0,
        preempted_at=1795360880.0,
        time_limit_s=86_700,
        restarts=2,
        exit_code="0:15",
        name="job.sh",
        partition="normal",
        user="root",
        account="research",
        qos="normal",
    )


def test_requested_nodes_and_a_comment_are_not_taken_for_the_jobs_own_fields() -> None:
    fields = parse_scontrol(CAPTURED)
    assert fields["NodeList"] == "node[1-2]"
    assert fields["JobState"] == "CANCELLED"


def test_values_may_hold_blanks_and_equal_signs() -> None:
    fields = parse_scontrol(CAPTURED)
    assert fields["Command"] == "/tmp/a b/job.sh"
    assert fields["TRES"] == "cpu=2,mem=200M,node=2,billing=2"


def test_sacct_adds_who_cancelled_a_job() -> None:
    job = job_of_row({"JobIDRaw": "5", "State": "CANCELLED by 1000", "NodeList": "None assigned"})
    assert (job.state, job.reason) == ("CANCELLED", "by 1000")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", []),
        ("node1", ["node1"]),
        ("gpu[01-03,7],login", ["gpu01", "gpu02", "gpu03", "gpu7", "login"]),
        ("r[1-2]n[3-4]", ["r1n3", "r1n4", "r2n3", "r2n4"]),
        ("a[08-11]-ib", ["a08-ib", "a09-ib", "a10-ib", "a11-ib"]),
    ],
)
def test_host_lists(text: str, names: list[str]) -> None:
    assert expand_nodes(text) == names


@given(st.lists(st.from_regex(r"[a-z]{1,5}-?[0-9]{0,3}", fullmatch=True), max_size=6))
def test_a_list_without_brackets_is_itself(names: list[str]) -> None:
    assert expand_nodes(",".join(names)) == names


@pytest.mark.parametrize("text", [None, "", "N/A", "Unknown", "None", "0", "soon"])
def test_times_that_slurm_does_not_know_are_none(text: str | None) -> None:
    assert epoch_s(text) is None


class Scheduler:
    """Answers as a scheduler would, and counts the calls: for outages that are hard to make."""

    def __init__(self, **answers: Answer) -> None:
        self.answers = answers
        self.calls: list[str] = []

    def __call__(self, command: Sequence[str], *, timeout_s: float = 1.0) -> Answer:
        self.calls.append(command[0])
        return self.answers.get(command[0], Answer(None, "", "no answer"))


def test_a_scheduler_that_does_not_answer_leaves_every_job_unknown() -> None:
    jobs = query_jobs(["1", "2"], run=Scheduler())
    assert {job.state for job in jobs.values()} == {UNKNOWN}


def test_a_job_that_the_controller_denies_has_ended_also_without_accounting() -> None:
    answers = Scheduler(
        squeue=Answer(1, "", "slurm_load_jobs error: Invalid job id specified"),
        sacct=Answer(1, "", "Slurm accounting storage is disabled"),
    )
    assert query_jobs(["1"], run=answers)["1"].state == NOT_FOUND


def test_a_job_that_nobody_knows_is_not_found() -> None:
    answers = Scheduler(
        squeue=Answer(1, "", "slurm_load_jobs error: Invalid job id specified"),
        sacct=Answer(0, "", ""),
    )
    assert query_jobs(["1"], run=answers)["1"].state == NOT_FOUND


def test_no_jobs_ask_nobody() -> None:
    scheduler = Scheduler()
    assert query_jobs([], run=scheduler) == {}
    assert scheduler.calls == []


def test_a_missing_program_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert show_job("1").state == UNKNOWN


def test_a_hanging_scheduler_is_left_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "scontrol"
    program.write_text(f"#!/bin/sh\nexec {shutil.which('sleep')} 60\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    job = show_job("1", timeout_s=0.2)
    assert (job.state, "did not answer" in job.reason) == (UNKNOWN, True)


@pytest.mark.parametrize(
    ("code", "job", "result"),
    [
        (0, JobInfo("7", "COMPLETING", restarts=1), Requeued.ACCEPTED),
        (0, JobInfo("7", "PENDING", restarts=1), Requeued.ACCEPTED),
        (1, JobInfo("7", "COMPLETING", restarts=1), Requeued.ALREADY),
        (1, JobInfo("7", "COMPLETING", preempted_at=1.0), Requeued.REFUSED),
        (0, JobInfo("7", "COMPLETING"), Requeued.CANCELLED),
        (0, JobInfo("7", "CANCELLED"), Requeued.CANCELLED),
        (1, JobInfo("7", "RUNNING"), Requeued.REFUSED),
        (0, JobInfo("7", "RUNNING"), Requeued.OPEN),
        (-15, JobInfo("7", "RUNNING"), Requeued.OPEN),
        (None, JobInfo("7", UNKNOWN), Requeued.OPEN),
        (1, JobInfo("7", "COMPLETING", reason="TimeLimit"), Requeued.REFUSED),
    ],
)
def test_what_a_requeue_came_to_is_read_from_the_job_and_not_from_the_exit_code(
    code: int | None, job: JobInfo, result: Requeued
) -> None:
    assert read_answer(Answer(code, "", ""), job, restarts_before=0) is result


def use(cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in cluster.env.items():
        monkeypatch.setenv(name, value)


@pytest.mark.slurm
def test_many_jobs_are_asked_about_with_one_call(
    slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(slurm_cluster, monkeypatch)
    name = "a-name-that-is-longer-than-squeues-usual-column-of-twenty"
    running = slurm_cluster.sbatch("sleep 60", f"--job-name={name}", "--time=7")
    waiting = slurm_cluster.sbatch("sleep 60", "--begin=now+1hour")
    slurm_cluster.wait_for_state(running, "RUNNING")
    calls: list[str] = []

    def counted(command: Sequence[str], *, timeout_s: float = 15.0) -> Answer:
        calls.append(command[0])
        return ask(command, timeout_s=timeout_s)

    jobs = query_jobs([str(running), str(waiting)], run=counted)
    assert calls == ["squeue"]
    first, second = jobs[str(running)], jobs[str(waiting)]
    assert (first.state, first.name, first.time_limit_s) == ("RUNNING", name, 420)
    assert first.nodes and first.ends_at == (first.started_at or 0) + 420
    assert (second.state, second.pending, second.nodes) == ("PENDING", True, ())
    slurm_cluster.cancel_all()


@pytest.mark.slurm
def test_accounting_remembers_what_squeue_forgot(
    make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=1, min_job_age_s=2))
    use(cluster, monkeypatch)
    job_id = str(cluster.sbatch("exit 3"))
    cluster.wait_for_state(int(job_id), "FAILED")
    forget(job_id)
    jobs = query_jobs([job_id, "4711"])
    assert jobs[job_id].state == "FAILED"
    assert jobs["4711"].state == NOT_FOUND


def forget(job_id: str) -> None:
    """Wait until slurmctld has purged an ended job (MinJobAge, looked at every half minute)."""
    deadline = time.monotonic() + 90
    while show_job(job_id).state != NOT_FOUND:
        assert time.monotonic() < deadline
        time.sleep(1)


@pytest.mark.slurm
def test_a_stopped_controller_makes_jobs_unknown_and_not_ended(
    make_cluster: ClusterFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = make_cluster(ClusterOptions(nodes=1, accounting=False))
    use(cluster, monkeypatch)
    job_id = str(cluster.sbatch("sleep 60"))
    cluster.wait_for_state(int(job_id), "RUNNING")
    cluster.pause("slurmctld")
    try:
        assert show_job(job_id, timeout_s=1).state == UNKNOWN
    finally:
        cluster.resume("slurmctld")


@pytest.mark.slurm
def test_killwait_and_steps_of_a_real_cluster(
    slurm_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(slurm_cluster, monkeypatch)
    assert kill_wait_s() == slurm_cluster.options.kill_wait_s
    job_id = slurm_cluster.sbatch("srun --job-name=attempt-007 sleep 60")
    slurm_cluster.wait_for_state(job_id, "RUNNING")
    step = None
    for _ in range(100):
        step = step or find_step(str(job_id), "attempt-007")
    assert step == f"{job_id}.0"
    assert find_step(str(job_id), "attempt-008") is None
    slurm_cluster.cancel_all()
